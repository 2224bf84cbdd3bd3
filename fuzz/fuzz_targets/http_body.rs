//! Request bodies: whatever bytes come, both parsers return, and what they accept is within the bounds that the
//! layers below rely on.

#![no_main]

use engine_wire::openai::{GenerateOptions, MAX_STOP_STRINGS, Prompt, parse_chat, parse_completion};
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
});

fn check(options: &GenerateOptions) {
    assert!(!options.model.is_empty());
    assert!((0.0..=2.0).contains(&options.temperature));
    assert!(options.top_p > 0.0 && options.top_p <= 1.0);
    assert!((0.0..=1.0).contains(&options.min_p));
    assert!(options.max_tokens != Some(0));
    assert!(options.stop.len() <= MAX_STOP_STRINGS && options.stop.iter().all(|stop| !stop.is_empty()));
}
