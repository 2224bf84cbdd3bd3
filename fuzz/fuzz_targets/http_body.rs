//! Request bodies: whatever bytes come, all parsers return, and what they accept is within the bounds that the
//! layers below rely on.

#![no_main]

use engine_wire::openai::{
    GenerateOptions, MAX_CHOICES, MAX_LOGIT_BIAS, MAX_STOP_STRINGS, Prompt, parse_chat, parse_completion,
    parse_detokenize, parse_tokenize,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    if let Ok(request) = parse_chat(body) {
        assert!(!request.messages.is_empty());
        check(&request.options);
    }
    if let Ok(request) = parse_completion(body) {
        assert!((1..=16).contains(&request.prompts.len()));
        // A token id takes at least one byte and a separator of the body.
        let ids = request.prompts.iter().map(|prompt| if let Prompt::Tokens(ids) = prompt { ids.len() } else { 0 });
        assert!(ids.sum::<usize>() <= body.len() / 2);
        check(&request.options);
    }
    let _ = parse_tokenize(body);
    if let Ok(request) = parse_detokenize(body) {
        assert!(request.tokens.len() <= body.len() / 2);
    }
});

fn check(options: &GenerateOptions) {
    assert!(!options.model.is_empty());
    assert!((0.0..=2.0).contains(&options.temperature));
    assert!(options.top_p > 0.0 && options.top_p <= 1.0);
    assert!((0.0..=1.0).contains(&options.min_p));
    assert!((-2.0..=2.0).contains(&options.frequency_penalty) && (-2.0..=2.0).contains(&options.presence_penalty));
    assert!(options.repetition_penalty.is_finite() && options.repetition_penalty > 0.0);
    assert!(options.logit_bias.len() <= MAX_LOGIT_BIAS && options.logit_bias.is_sorted_by(|a, b| a.0 < b.0));
    assert!((1..=MAX_CHOICES).contains(&options.n));
    assert!(options.top_logprobs.is_none_or(|top| top <= 20));
    assert!(options.max_tokens != Some(0) || options.echo);
    assert!(options.stop.len() <= MAX_STOP_STRINGS && options.stop.iter().all(|stop| !stop.is_empty()));
}
