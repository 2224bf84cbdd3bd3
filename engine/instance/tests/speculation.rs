//! Drafts change no output, on real weights: not greedy, not seeded, not under penalties, stop rules or preemption,
//! and not when what is drafted is nonsense.

mod common;

use common::{HopStream, TestEngine, request};
use engine_core::{
    Forward, LogitsRow, Sampled, Scheduler, SchedulerConfig, SchedulerStats, SequenceEvent, SequenceId, Speculation,
    Step, Submission, TokenId,
};
use engine_instance::EngineOptions;
use engine_runtime::{History, LoadOptions};
use engine_store::Gguf;
use engine_text::TextModel;
use engine_wire::hop::{GenerateRequest, HopEvent, TokenLogprobs};
use engine_wire::sampling::{Sampling, StopRule};
use std::path::PathBuf;

/// Room for some 480 tokens, of the 800 that the requests below come to.
const SCARCE_KV_BYTES: u64 = 11 << 20;

fn checkpoint() -> PathBuf {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run `cargo xtask setup`", path.display());
    path
}

fn tokens(texts: &[&str]) -> Vec<Vec<TokenId>> {
    let text = TextModel::from_gguf(&Gguf::open(checkpoint()).expect("a checkpoint")).expect("a tokenizer");
    texts.iter().map(|prompt| text.encode(prompt, true).expect("tokens")).collect()
}

/// Prompts that invite repetition, and one that does not; with every way to choose a token.
fn requests() -> Vec<GenerateRequest> {
    let prompts = tokens(&[
        "one two three four one two three four one two three four one two",
        "The cat sat on the mat. The dog sat on the log. The cat sat on the mat. The dog sat on",
        "{\"name\": \"a\", \"size\": 1}, {\"name\": \"b\", \"size\": 2}, {\"name\": \"c\", \"size\":",
        "In the beginning there was a river, and nobody knew",
    ]);
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let seeded = Sampling { temperature: 0.7, top_p: 0.9, top_k: 50, min_p: 0.02, seed: 5, ..Sampling::default() };
    let penalised = Sampling {
        frequency_penalty: 0.3,
        presence_penalty: 0.2,
        repetition_penalty: 1.1,
        logit_bias: vec![(30, 1.0)],
        ..seeded.clone()
    };
    let mut requests = Vec::new();
    for prompt in &prompts {
        for sampling in [&greedy, &seeded, &penalised] {
            requests.push(GenerateRequest { sampling: sampling.clone(), ..request(prompt, 40) });
        }
    }
    // Ends inside of what is likely to be drafted.
    let four = tokens(&[" four"])[0].clone();
    for (max_tokens, min_tokens, ignore_eos) in [(1, 0, true), (2, 0, true), (23, 0, false), (40, 9, false)] {
        let stop = StopRule { max_tokens, min_tokens, ignore_eos, stop_token_ids: Vec::new() };
        requests.push(GenerateRequest { stop: stop.clone(), ..request(&prompts[0], 1) });
        let stop = StopRule { stop_token_ids: four.clone(), ..stop };
        requests.push(GenerateRequest { stop, sampling: seeded.clone(), ..request(&prompts[0], 1) });
    }
    requests
}

/// Where drafts come from.
#[derive(Clone, Copy)]
enum Drafts<'a> {
    Off,
    /// The scheduler's own, whether they pay or not.
    Lookup,
    /// Tokens without meaning.
    Garbage,
    /// What was drawn without drafts.
    Right(&'a [Vec<TokenId>]),
}

/// All requests at once, by the very parts that a step loop is made of.
fn serve(
    forward: &mut dyn Forward,
    requests: &[GenerateRequest],
    drafts: Drafts<'_>,
) -> (Vec<Vec<TokenId>>, SchedulerStats) {
    let speculation = if matches!(drafts, Drafts::Off) { Speculation::Off } else { Speculation::Always };
    let config = SchedulerConfig { speculation, eos_token_ids: vec![2], ..SchedulerConfig::default() };
    let mut scheduler = Scheduler::new(forward.shape(), config).expect("room");
    for (id, request) in requests.iter().enumerate() {
        let stop = &request.stop;
        let limits = engine_core::Limits {
            max_tokens: stop.max_tokens as usize,
            min_tokens: stop.min_tokens as usize,
            given_tokens: 0,
            ignore_eos: stop.ignore_eos,
            stop_token_ids: stop.stop_token_ids.clone(),
        };
        let submission = Submission {
            id: SequenceId(id as u64),
            tenant: "t".into(),
            adapter: None,
            prompt: request.prompt.clone(),
            emitted: Vec::new(),
            limits,
            priority: 0,
            deadline_ns: 0,
            speculate: true,
        };
        scheduler.submit(submission).expect("room");
    }
    let new_history = |request: &GenerateRequest| History::new(&request.sampling, &request.prompt, &[]);
    let mut histories: Vec<History> = requests.iter().map(new_history).collect();
    let (mut output, mut logits) = (vec![Vec::new(); requests.len()], Vec::new());
    let vocab = forward.shape().vocab;
    while let Some(step) = schedule(&mut scheduler, requests, drafts) {
        forward.forward(&step.batch, &mut logits).expect("it computes");
        let (mut sampled, mut void) = (Vec::new(), None);
        for (row, logits) in step.rows.iter().zip(logits.chunks_exact_mut(vocab)) {
            if void == Some(row.sequence) {
                sampled.push(Sampled::Skipped);
                continue;
            }
            let index = row.sequence.0 as usize;
            let token = draw(&scheduler, row, &requests[index].sampling, &histories[index], logits);
            histories[index].push(token);
            if row.draft.is_some_and(|draft| draft != token) {
                void = Some(row.sequence);
            }
            sampled.push(Sampled::Token(token));
        }
        for event in scheduler.complete(step.id, &sampled).expect("in flight") {
            if let SequenceEvent::Token { id, token } = event {
                output[id.0 as usize].push(token);
            }
        }
        assert_eq!(scheduler.audit(), Ok(()));
    }
    (output, scheduler.stats())
}

fn schedule(scheduler: &mut Scheduler, requests: &[GenerateRequest], drafts: Drafts<'_>) -> Option<Step> {
    match drafts {
        Drafts::Off | Drafts::Lookup => scheduler.schedule(),
        Drafts::Garbage => scheduler.schedule_with_drafts(&mut |id, tokens| {
            (0..8).map(|n| (id.0 as u32 * 31 + tokens.len() as u32 * 977 + n * 7919) % 49_000).collect()
        }),
        Drafts::Right(expected) => scheduler.schedule_with_drafts(&mut |id, tokens| {
            let done = tokens.len() - requests[id.0 as usize].prompt.len();
            expected[id.0 as usize][done..].to_vec()
        }),
    }
}

fn draw(scheduler: &Scheduler, row: &LogitsRow, sampling: &Sampling, history: &History, logits: &mut [f32]) -> TokenId {
    engine_runtime::adjust(logits, sampling, history);
    if row.suppress_stop {
        scheduler.stop_tokens(row.sequence).for_each(|token| logits[token as usize] = f32::MIN);
    }
    engine_runtime::sample(logits, sampling, row.position).expect("finite logits")
}

#[test]
fn no_draft_changes_a_token_with_scarce_blocks_and_preemption() {
    let gguf = Gguf::open(checkpoint()).expect("a checkpoint");
    let options = LoadOptions { threads: 2, kv_bytes: SCARCE_KV_BYTES, ..LoadOptions::default() };
    let mut forward = engine_runtime::load(&gguf, options).expect("it loads");
    let requests = requests();
    let (expected, plain) = serve(&mut *forward, &requests, Drafts::Off);
    assert_eq!(plain.drafts_total, 0);
    assert!(plain.preemptions_total > 0, "the blocks are scarce");
    let mut accepted = Vec::new();
    for drafts in [Drafts::Lookup, Drafts::Garbage, Drafts::Right(&expected)] {
        let (output, stats) = serve(&mut *forward, &requests, drafts);
        assert!(output == expected);
        assert!(stats.drafts_total > 0);
        assert_eq!(stats.kv_blocks_used, 0);
        accepted.push(stats.draft_tokens_accepted_total as f64 / stats.draft_tokens_total as f64);
    }
    assert!(accepted[0] > 0.2 && accepted[1] < 0.01 && accepted[2] > 0.9, "{accepted:?}");
}

async fn engine(speculation: Speculation) -> TestEngine {
    let change = move |options: &mut EngineOptions| {
        options.model = checkpoint();
        options.kv_bytes = Some(64 << 20);
        options.speculation = speculation;
    };
    TestEngine::start_checkpoint(change).await
}

/// Everything that a stream says.
async fn all(stream: HopStream) -> (Vec<TokenId>, Vec<TokenLogprobs>, Option<HopEvent>) {
    let (mut stream, mut ids, mut scores) = (stream, Vec::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event {
            HopEvent::Tokens(more) => ids.extend(more),
            HopEvent::Scored { tokens, logprobs } => {
                ids.extend(tokens);
                scores.extend(logprobs);
            }
            end => return (ids, scores, Some(end)),
        }
    }
    (ids, scores, None)
}

#[tokio::test]
async fn streams_text_and_log_probabilities_are_the_same_with_and_without() {
    let plain = engine(Speculation::Off).await;
    let drafting = engine(Speculation::Always).await;
    let mut requests = requests();
    for request in requests.iter_mut().step_by(2) {
        request.top_logprobs = Some(3);
    }
    let mut streams = Vec::new();
    for request in &requests {
        streams.push((plain.generate(request).await, drafting.generate(request).await));
    }
    for (request, (expected, found)) in requests.iter().zip(streams) {
        let (mut expected, mut found) = (all(expected).await, all(found).await);
        // How much a request found in the cache depends on how far the one before it was when it came.
        for stream in [&mut expected, &mut found] {
            if let Some(HopEvent::Finished { cached_tokens, .. }) = &mut stream.2 {
                *cached_tokens = 0;
            }
        }
        assert_eq!(found.1.len(), if request.top_logprobs.is_some() { found.0.len() } else { 0 });
        assert!(found == expected, "{request:?}: {found:?}, not {expected:?}");
    }
    // Text, with a string that ends it somewhere in a run.
    for (stop, seed) in [(" three", 1), ("our one", 2), (", \"size\"", 3)] {
        let body = serde_json::json!({
            "model": common::MODEL, "max_tokens": 40, "temperature": 0.3, "seed": seed, "stop": stop, "logprobs": 2,
            "prompt": "one two three four one two three four one two three four one two",
        });
        let answers = [plain.post("/v1/completions", &body).await, drafting.post("/v1/completions", &body).await];
        assert!(answers[0]["choices"][0]["text"].is_string(), "{}", answers[0]);
        assert_eq!(answers[0]["choices"], answers[1]["choices"]);
        assert_eq!(answers[0]["usage"]["completion_tokens"], answers[1]["usage"]["completion_tokens"]);
    }
    let telemetry = [plain.telemetry().await, drafting.telemetry().await];
    assert_eq!(telemetry[0].draft_tokens_total, 0);
    assert!(telemetry[1].draft_tokens_accepted_total > 0);
    assert!(telemetry[1].steps_total < telemetry[0].steps_total);
}
