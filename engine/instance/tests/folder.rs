//! A Hugging Face folder served by an engine: the reference tokens through the hop, and the OpenAI API with the
//! folder's own tokenizer and template.

mod common;
#[path = "../../runtime/tests/common/folder.rs"]
mod folder;
#[path = "../../text/tests/common/tokenizer_json.rs"]
mod tokenizer_json;

use common::{MODEL, TestEngine, request};
use engine_instance::{Compute, EngineOptions};
use engine_store::{Gguf, Quantisation};
use engine_wire::TokenId;
use folder::Dtype;
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt_ids: Vec<TokenId>,
    greedy_ids: Vec<TokenId>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn checkpoint() -> PathBuf {
    let path = root().join("target/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(path.exists(), "{} is missing: run `cargo xtask setup`", path.display());
    path
}

async fn engine(model: &Path, compute: Compute, quantise: Option<Quantisation>) -> TestEngine {
    let change = |options: &mut EngineOptions| {
        options.model = model.to_owned();
        options.compute = compute;
        options.quantise = quantise;
        options.kv_bytes = Some(64 << 20);
    };
    TestEngine::start_checkpoint(change).await
}

#[tokio::test]
async fn a_folder_is_served_like_the_file_that_it_was_made_from() {
    let gguf = Gguf::open(checkpoint()).expect("a checkpoint");
    let model = tempfile::tempdir().expect("a folder");
    tokenizer_json::write(&gguf, model.path());
    folder::write(&gguf, model.path(), Dtype::F32, 2);

    let of_folder = engine(model.path(), Compute::F32, None).await;
    let golden = root().join("../shared/golden/smollm2_q4_1_dequant_f32_greedy32.json");
    let golden: Golden = serde_json::from_slice(&std::fs::read(golden).expect("the golden file")).expect("its shape");
    let case = &golden.cases[0];
    let (tokens, _) = of_folder.generate(&request(&case.prompt_ids, 32)).await.collect().await;
    assert_eq!(tokens, case.greedy_ids);

    let of_file = engine(&checkpoint(), Compute::F32, None).await;
    let chat = json!({"model": MODEL, "temperature": 0, "max_tokens": 24,
                      "messages": [{"role": "user", "content": "What is the capital of France?"}]});
    let completion = json!({"model": MODEL, "temperature": 0, "max_tokens": 8, "prompt": "1, 2, 3,"});
    for (path, body) in [("/v1/chat/completions", &chat), ("/v1/completions", &completion)] {
        let [found, expected] = [of_folder.post(path, body).await, of_file.post(path, body).await];
        assert_eq!(found["choices"], expected["choices"], "{path}");
        assert_eq!(found["usage"], expected["usage"], "{path}");
    }

    let rounded = engine(model.path(), Compute::Fast, Some(Quantisation::Q4_1)).await;
    let answer = rounded.post("/v1/completions", &completion).await;
    let text = answer["choices"][0]["text"].as_str().unwrap_or_default();
    assert!(text.starts_with(" 4, 5"), "{answer}");
}

#[tokio::test]
async fn a_folder_with_a_fault_is_refused_in_one_line() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = dir.path().join("model");
    std::fs::create_dir(&model).expect("a folder");
    let start = async |expected: &str| {
        let options = EngineOptions { model: model.clone(), ..common::options(dir.path()) };
        let error = engine_instance::run(options).await.expect_err("it cannot start");
        let line = error.to_string();
        assert!(error.exit_code() == 2 && line.contains(expected) && !line.contains('\n'), "{line}");
    };
    start("config.json: No such file").await;
    std::fs::write(model.join("config.json"), r#"{"model_type": "mamba"}"#).expect("writable");
    start("has no tokenizer.json").await;
    std::fs::write(model.join("tokenizer.json"), "{}").expect("writable");
    start("model_type: \"mamba\" is not supported").await;
}
