//! Which requests a model can serve, and which it cannot, said in the API's words.

use engine_core::ForwardShape;
use engine_http::ApiError;
use engine_wire::TokenId;
use engine_wire::hop::{GenerateRequest, MAX_TOP_LOGPROBS};

/// What is known of a model once it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ModelFacts {
    pub shape: ForwardShape,
    /// Longest sequence that context and KV cache allow, tokens.
    pub max_sequence_tokens: usize,
}

/// Refuses a request that can never be served.
pub(crate) fn check(request: &GenerateRequest, facts: &ModelFacts) -> Result<(), ApiError> {
    if request.prompt.is_empty() {
        return invalid("The prompt is empty: send at least one token.", "prompt");
    }
    check_vocabulary(&request.prompt, facts.shape.vocab, "prompt")?;
    check_vocabulary(&request.emitted, facts.shape.vocab, "emitted")?;
    check_vocabulary(&request.given, facts.shape.vocab, "given")?;
    if request.given.len() > request.stop.max_tokens as usize {
        return invalid("max_tokens must count the tokens that are given.", "given");
    }
    if !request.given.is_empty() && request.constraint.is_some() {
        return invalid("Tokens that are given follow no constraint.", "given");
    }
    check_sampling(request)?;
    check_logits(request, facts.shape.vocab)?;
    let (prompt_tokens, max_tokens) = (request.prompt.len(), request.stop.max_tokens);
    if prompt_tokens.saturating_add(max_tokens as usize) > facts.shape.context_tokens {
        return Err(ApiError::ContextLength {
            context_tokens: count(facts.shape.context_tokens),
            prompt_tokens: count(prompt_tokens),
            max_tokens,
        });
    }
    let prefix_tokens = prompt_tokens + request.emitted.len();
    if max_tokens as usize > request.emitted.len() && prefix_tokens >= facts.max_sequence_tokens {
        let message = format!(
            "The prompt has {prefix_tokens} tokens, but this instance's KV cache holds {} of one sequence, output included. \
             Shorten the prompt, or start the engine with more --kv-bytes.",
            facts.max_sequence_tokens
        );
        return Err(ApiError::InvalidRequest { message, param: Some("prompt".into()) });
    }
    Ok(())
}

pub(crate) fn check_vocabulary(tokens: &[TokenId], vocab: usize, param: &str) -> Result<(), ApiError> {
    match tokens.iter().position(|token| *token as usize >= vocab) {
        None => Ok(()),
        Some(index) => invalid(
            &format!("{param}[{index}] is {}, but the model's vocabulary has {vocab} tokens.", tokens[index]),
            param,
        ),
    }
}

fn check_sampling(request: &GenerateRequest) -> Result<(), ApiError> {
    let sampling = &request.sampling;
    if !(sampling.temperature.is_finite() && sampling.temperature >= 0.0) {
        return invalid("temperature must be a number of at least 0.", "temperature");
    }
    if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
        return invalid("top_p must be above 0 and at most 1.", "top_p");
    }
    if !(0.0..=1.0).contains(&sampling.min_p) {
        return invalid("min_p must be between 0 and 1.", "min_p");
    }
    Ok(())
}

/// What is done to logits before a draw, and what is read from them.
fn check_logits(request: &GenerateRequest, vocab: usize) -> Result<(), ApiError> {
    let sampling = &request.sampling;
    let (frequency, presence) = (sampling.frequency_penalty, sampling.presence_penalty);
    for (name, penalty) in [("frequency_penalty", frequency), ("presence_penalty", presence)] {
        if !(-2.0..=2.0).contains(&penalty) {
            return invalid(&format!("{name} must be between -2 and 2."), name);
        }
    }
    if !(sampling.repetition_penalty.is_finite() && sampling.repetition_penalty > 0.0) {
        return invalid("repetition_penalty must be a number above 0.", "repetition_penalty");
    }
    for (token, bias) in &sampling.logit_bias {
        if *token as usize >= vocab {
            let message = format!("logit_bias names token {token}, but the model's vocabulary has {vocab} tokens.");
            return invalid(&message, "logit_bias");
        }
        if !(-100.0..=100.0).contains(bias) {
            return invalid("logit_bias must be between -100 and 100 for each token.", "logit_bias");
        }
    }
    if request.top_logprobs.is_some_and(|top| top > MAX_TOP_LOGPROBS) {
        return invalid(&format!("top_logprobs must be at most {MAX_TOP_LOGPROBS}."), "top_logprobs");
    }
    Ok(())
}

fn invalid(message: &str, param: &str) -> Result<(), ApiError> {
    Err(ApiError::InvalidRequest { message: message.to_string(), param: Some(param.to_string()) })
}

fn count(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_wire::sampling::{Sampling, StopRule};

    fn check_case(change: impl FnOnce(&mut GenerateRequest), expected: Option<&str>) {
        let shape = ForwardShape { vocab: 50, kv_block_tokens: 4, kv_blocks: 5, context_tokens: 32 };
        let facts = ModelFacts { shape, max_sequence_tokens: 20 };
        let mut request = GenerateRequest {
            model: "m".into(),
            adapter_revision: None,
            prompt: vec![1, 2, 3],
            emitted: Vec::new(),
            sampling: Sampling::default(),
            stop: StopRule { max_tokens: 8, ..StopRule::default() },
            given: Vec::new(),
            top_logprobs: None,
            priority: 0,
            constraint: None,
        };
        change(&mut request);
        let message = check(&request, &facts).err().map(|error| error.to_string());
        match (expected, message) {
            (None, None) => {}
            (Some(expected), Some(message)) => assert!(message.contains(expected), "{message}"),
            (expected, message) => panic!("expected {expected:?}, got {message:?}"),
        }
    }

    #[test]
    fn requests_are_checked() {
        check_case(|_| {}, None);
        check_case(|r| r.prompt.clear(), Some("empty"));
        check_case(|r| r.prompt[1] = 50, Some("prompt[1] is 50"));
        check_case(|r| r.emitted = vec![4, 99], Some("emitted[1] is 99"));
        check_case(|r| r.given = vec![7; 8], None);
        check_case(|r| r.given = vec![7; 9], Some("max_tokens must count"));
        check_case(|r| r.given = vec![50], Some("given[0] is 50"));
        check_case(|r| r.stop.max_tokens = 29, None);
        check_case(|r| r.stop.max_tokens = 30, Some("maximum context length is 32"));
        check_case(|r| r.prompt = vec![1; 19], None);
        check_case(|r| r.prompt = vec![1; 20], Some("KV cache holds 20"));
        check_case(|r| r.sampling.temperature = f32::NAN, Some("temperature"));
        check_case(|r| r.sampling.temperature = -1.0, Some("temperature"));
        check_case(|r| r.sampling.top_p = 0.0, Some("top_p"));
        check_case(|r| r.sampling.min_p = 1.5, Some("min_p"));
        check_case(|r| r.sampling.frequency_penalty = f32::NAN, Some("frequency_penalty"));
        check_case(|r| r.sampling.presence_penalty = -2.1, Some("presence_penalty"));
        check_case(|r| r.sampling.repetition_penalty = 0.0, Some("repetition_penalty"));
        check_case(|r| r.sampling.logit_bias = vec![(49, 100.0)], None);
        check_case(|r| r.sampling.logit_bias = vec![(50, 1.0)], Some("logit_bias names token 50"));
        check_case(|r| r.sampling.logit_bias = vec![(1, f32::INFINITY)], Some("logit_bias must be"));
        check_case(|r| r.top_logprobs = Some(20), None);
        check_case(|r| r.top_logprobs = Some(21), Some("top_logprobs"));
    }
}
