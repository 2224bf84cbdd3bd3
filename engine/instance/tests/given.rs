//! Prompts whose log-probabilities are wanted: given as output, scored as the output that they once were.

mod common;

use common::{TestEngine, reason, request};
use engine_wire::TokenId;
use engine_wire::hop::{FinishReason, GenerateRequest, HopEvent, TokenLogprobs};
use engine_wire::sampling::Sampling;
use std::path::Path;

/// Tokens of a request with the log-probabilities that came beside them, and its end.
async fn scored(engine: &TestEngine, request: &GenerateRequest) -> (Vec<(TokenId, TokenLogprobs)>, Option<HopEvent>) {
    let (mut stream, mut out) = (engine.generate(request).await, Vec::new());
    while let Some(event) = stream.next().await {
        match event {
            HopEvent::Scored { tokens, logprobs } => out.extend(tokens.into_iter().zip(logprobs)),
            end => return (out, Some(end)),
        }
    }
    (out, None)
}

#[tokio::test]
async fn a_text_has_the_scores_that_it_had_when_it_was_drawn() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run `cargo xtask setup`", path.display());
    let engine = TestEngine::start_checkpoint(|options| {
        options.model = path;
        options.kv_bytes = Some(64 << 20);
    })
    .await;
    // Drawn hot from one token, so that it says many things, the end of sequence among them perhaps.
    let mut drawn = request(&[504], 40);
    drawn.sampling = Sampling { temperature: 1.5, seed: 3, ..drawn.sampling };
    drawn.top_logprobs = Some(2);
    let (expected, _) = scored(&engine, &drawn).await;
    let tokens: Vec<TokenId> = expected.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens.len(), 40);

    // All of it given: the same numbers, bit for bit, and nothing more.
    let all = GenerateRequest { given: tokens.clone(), ..drawn.clone() };
    let (got, end) = scored(&engine, &all).await;
    assert_eq!((got, reason(&end)), (expected.clone(), Some(FinishReason::Length)));
    // A part of it: the rest is drawn as it was, whatever the prefix cache has by now.
    for count in [1, 17, 39] {
        let part = GenerateRequest { given: tokens[..count].to_vec(), ..drawn.clone() };
        assert_eq!(scored(&engine, &part).await.0, expected, "{count} given");
        // Cut on either side of the seam, it goes on where it was.
        for cut in [count - 1, count, count + 1] {
            let resumed = GenerateRequest { emitted: tokens[..cut].to_vec(), ..part.clone() };
            assert_eq!(scored(&engine, &resumed).await.0, expected[cut..], "{count} given, cut after {cut}");
        }
    }
    // Penalties see what is given as a prompt; an end of sequence in it ends nothing.
    let mut penalised = GenerateRequest { prompt: [&[504], &tokens[..9], &[2]].concat(), ..drawn };
    penalised.sampling.frequency_penalty = 1.0;
    penalised.sampling.repetition_penalty = 1.3;
    penalised.stop.max_tokens = 8;
    penalised.stop.ignore_eos = false;
    let (expected, _) = scored(&engine, &penalised).await;
    let given = penalised.prompt.split_off(1);
    penalised.stop.max_tokens += given.len() as u32;
    let (got, _) = scored(&engine, &GenerateRequest { given: given.clone(), ..penalised }).await;
    assert_eq!(got[given.len()..], expected);
    let served = engine.telemetry().await;
    assert!(served.finished.iter().any(|record| (record.prompt_tokens, record.output_tokens) == (41, 0)), "{served:?}");
}
