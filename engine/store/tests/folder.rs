//! Hugging Face folders: small good ones of each architecture, and everything that can be wrong with one.

#[path = "common/tiny_folder.rs"]
mod tiny_folder;

use engine_store::{
    Architecture, Biases, Checkpoint, CheckpointError, GgmlType, ModelConfig, Quantisation, Rotation, TextFiles,
    revision, stamp,
};
use serde_json::{Value, json};
use std::path::Path;
use tiny_folder::{Plan, llama};

fn open(plan: &Plan) -> Result<Checkpoint, CheckpointError> {
    Checkpoint::open(plan.folder().path(), None)
}

fn config_of(plan: Plan) -> ModelConfig {
    open(&plan).unwrap().validate().unwrap()
}

#[test]
fn a_folder_gives_what_a_file_gives() {
    let checkpoint = open(&llama()).unwrap();
    let config = checkpoint.validate().unwrap();
    assert_eq!((config.architecture, config.layers, config.width), (Architecture::Llama, 1, 32));
    assert_eq!((config.heads, config.kv_heads, config.head_dim, config.ffn_width), (2, 1, 16, 64));
    assert_eq!((config.rotation, config.biases, config.tied), (Rotation::Halves, Biases::None, true));
    assert_eq!((config.query_scale(), config.context_tokens, config.vocab), (0.25, 128, 4));
    let up = checkpoint.tensor_data("blk.0.ffn_up.weight").unwrap();
    assert_eq!((up.kind(), up.dims(), up.len()), (GgmlType::BF16, &[32, 64][..], 32 * 64 * 2));
    let norm = checkpoint.tensor_data("blk.0.ffn_norm.weight").unwrap();
    assert_eq!((norm.kind(), norm.dims(), &norm[..4]), (GgmlType::F32, &[32][..], &0.5f32.to_le_bytes()[..]));
    assert!(!checkpoint.has_tensor("output.weight") && !checkpoint.has_tensor("rope_freqs.weight"));
    let summary = checkpoint.inspect().unwrap();
    assert_eq!((summary.architecture.as_str(), summary.layers, summary.vocab), ("llama", Some(1), Some(4)));
    assert_eq!((summary.quantisation["BF16"].0, summary.quantisation["F32"].0), (8, 3));
    assert!(!summary.chat_template && summary.unsupported.is_none());
}

#[test]
fn matrices_are_rounded_where_asked_and_where_they_can_be() {
    let kinds = |plan: &Plan, quantisation| -> Vec<(String, GgmlType)> {
        let folder = plan.folder();
        let checkpoint = Checkpoint::open(folder.path(), Some(quantisation)).unwrap();
        let kinds: Vec<_> = checkpoint.tensors().map(|tensor| (tensor.name.to_owned(), tensor.kind)).collect();
        for (name, kind) in &kinds {
            assert_eq!(checkpoint.tensor_data(name).unwrap().kind(), *kind, "{name}");
        }
        kinds
    };
    let of = |kinds: &[(String, GgmlType)], part: &str| kinds.iter().find(|row| row.0.contains(part)).unwrap().1;
    let found = kinds(&llama(), Quantisation::Q4_1);
    assert_eq!(of(&found, "attn_q"), GgmlType::Q4_1);
    assert_eq!(of(&found, "token_embd"), GgmlType::Q8_0);
    assert_eq!(of(&found, "attn_norm"), GgmlType::F32);
    // 48 columns are no whole number of blocks.
    let narrow = llama().set("intermediate_size", json!(48)).edit("gate", |t| t.1[0] = 48);
    let narrow = narrow.edit("up_proj", |t| t.1[0] = 48).edit("down", |t| t.1[1] = 48);
    let found = kinds(&narrow, Quantisation::Q8_0);
    assert_eq!((of(&found, "ffn_down"), of(&found, "ffn_gate")), (GgmlType::BF16, GgmlType::Q8_0));
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Checkpoint::open(file.path(), Some(Quantisation::Q8_0)).unwrap_err().to_string();
    assert!(error.contains("cannot be quantised to q8_0 at load"), "{error}");
}

#[test]
fn every_architecture_is_read() {
    let mistral = config_of(llama().set("model_type", json!("mistral")).set("sliding_window", json!(96)));
    assert_eq!((mistral.architecture, mistral.window(0)), (Architecture::Llama, Some(96)));
    let mistral = config_of(llama().set("model_type", json!("mistral")).set("sliding_window", Value::Null));
    assert_eq!(mistral.sliding, None);

    let biased = |plan: Plan, parts: &[(&str, u64)]| {
        parts.iter().fold(plan, |plan, (part, len)| plan.add(&format!("model.layers.0.self_attn.{part}.bias"), &[*len]))
    };
    let qkv = [("q_proj", 32), ("k_proj", 16), ("v_proj", 16)];
    let qwen2 = llama().set("model_type", json!("qwen2")).set("use_sliding_window", json!(false));
    let qwen2 = config_of(biased(qwen2.set("sliding_window", json!(4096)), &qkv));
    assert_eq!((qwen2.biases, qwen2.sliding), (Biases::Qkv, None));
    let llama_biased = biased(llama().set("attention_bias", json!(true)), &[&qkv[..], &[("o_proj", 32)]].concat());
    assert_eq!(config_of(llama_biased).biases, Biases::Attention);

    let norms = |plan: Plan| {
        let plan = plan.add("model.layers.0.self_attn.q_norm.weight", &[16]);
        plan.add("model.layers.0.self_attn.k_norm.weight", &[16])
    };
    let qwen3 = config_of(norms(llama()).set("model_type", json!("qwen3")).set("head_dim", json!(16)));
    assert_eq!((qwen3.architecture, qwen3.head_dim), (Architecture::Qwen3, 16));

    let untied = llama().set("tie_word_embeddings", json!(false)).add("lm_head.weight", &[4, 32]);
    assert!(!config_of(untied).tied);
    // A tied output may be stored all the same, and a table of frequencies says nothing new.
    let spare = llama().add("lm_head.weight", &[4, 32]).add("model.layers.0.self_attn.rotary_emb.inv_freq", &[8]);
    assert!(config_of(spare).tied);
    let bare = config_of(llama().rename("model.", ""));
    assert_eq!(bare.layers, 1);
}

/// The same as a Gemma 3: with the norms that it adds.
fn gemma3() -> Plan {
    let mut plan = llama().set("model_type", json!("gemma3_text")).set("hidden_activation", json!("gelu_pytorch_tanh"));
    plan.config["hidden_act"] = Value::Null;
    let plan = plan.set("head_dim", json!(16)).set("sliding_window", json!(64)).set("query_pre_attn_scalar", json!(64));
    let norms = [("self_attn.q_norm", 16), ("self_attn.k_norm", 16), ("pre_feedforward_layernorm", 32)];
    let plan =
        norms.into_iter().fold(plan, |plan, (name, len)| plan.add(&format!("model.layers.0.{name}.weight"), &[len]));
    plan.add("model.layers.0.post_feedforward_layernorm.weight", &[32])
}

#[test]
fn gemma3_is_read_alone_and_inside_a_model_that_sees() {
    let checkpoint = open(&gemma3()).unwrap();
    let config = checkpoint.validate().unwrap();
    assert_eq!((config.architecture, config.query_scale()), (Architecture::Gemma3, 0.125));
    // Norms are stored less one.
    for name in ["blk.0.attn_norm.weight", "blk.0.attn_q_norm.weight", "output_norm.weight"] {
        assert_eq!(checkpoint.tensor_data(name).unwrap()[..4], 1.5f32.to_le_bytes(), "{name}");
    }
    let sliding = config.sliding.unwrap();
    assert_eq!((sliding.tokens, sliding.global_every, sliding.rope_base), (64, Some(6), Some(10_000.0)));
    let newer = gemma3().set("layer_types", json!(["sliding_attention"])).set(
        "rope_parameters",
        json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
               "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0}}),
    );
    let newer = config_of(newer);
    assert_eq!((newer.rope_base, newer.rope_scale), (1e6, 8.0));
    assert_eq!(newer.sliding.unwrap().global_every, None);
    assert_eq!(newer.sliding.unwrap().rope_base, Some(5000.0));

    let text = gemma3().config;
    let mut whole = gemma3().rename("model.", "language_model.model.").add("vision_tower.norm.weight", &[8]);
    whole.config = json!({"model_type": "gemma3", "text_config": text});
    assert_eq!(config_of(whole.clone()).width, 32);
    let newest = whole.rename("language_model.model.", "model.language_model.");
    assert_eq!(config_of(newest).width, 32);
}

#[test]
fn rotary_scaling_is_worked_out() {
    let linear = config_of(llama().set("rope_scaling", json!({"type": "linear", "factor": 4.0})));
    assert_eq!((linear.rope_scale, linear.rope_base), (4.0, 10_000.0));
    let newer = config_of(llama().set("rope_parameters", json!({"rope_type": "default", "rope_theta": 5e5})));
    assert_eq!((newer.rope_scale, newer.rope_base), (1.0, 5e5));
    // Llama 3.2 1B's, with its heads of 64.
    let scaling = json!({"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192});
    let plan = llama().set("rope_scaling", scaling).set("rope_theta", json!(500_000.0)).set("head_dim", json!(64));
    let plan = plan.edit("q_proj", |t| t.1[0] = 128).edit("k_proj", |t| t.1[0] = 64);
    let plan = plan.edit("v_proj", |t| t.1[0] = 64).edit("o_proj", |t| t.1[1] = 128);
    let data = open(&plan).unwrap().tensor_data("rope_freqs.weight").unwrap();
    let factors: Vec<f32> = data.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    assert_eq!(factors.len(), 32);
    // From transformers' formula (`_compute_llama3_parameters`).
    let expected = |pair: usize| match pair {
        0..15 => 1.0,
        15 => 1.65133,
        16 => 3.29226,
        17 => 9.66673,
        _ => 32.0,
    };
    for (pair, factor) in factors.iter().enumerate() {
        assert!((factor - expected(pair)).abs() < 1e-4 * expected(pair), "pair {pair}: {factor}");
    }
}

/// The error's text must name what is wrong.
fn check(plan: Plan, expected: &str) {
    check_written(&plan, |_| {}, expected);
}

fn check_written(plan: &Plan, edit: impl FnOnce(&Path), expected: &str) {
    let folder = plan.folder();
    edit(folder.path());
    match Checkpoint::open(folder.path(), None) {
        Ok(_) => panic!("accepted, expected {expected:?}"),
        Err(error) => assert!(error.to_string().contains(expected), "{error} does not say {expected:?}"),
    }
}

#[test]
fn every_fault_of_the_configuration_is_named() {
    let check_field = |field: &str, value: Value, expected: &str| check(llama().set(field, value), expected);
    check_field("model_type", json!("mamba"), "config.json: model_type: \"mamba\" is not supported; supported: llama,");
    check_field("model_type", Value::Null, "model_type: is missing");
    check_field("hidden_size", Value::Null, "hidden_size: is missing");
    check_field("hidden_size", json!("32"), "hidden_size: \"32\" is not a size from 1 to");
    check_field("num_hidden_layers", json!(0), "num_hidden_layers: 0 is not a size");
    check_field("vocab_size", json!(1u64 << 40), "vocab_size");
    check_field("num_key_value_heads", json!(3), "num_key_value_heads: 3 does not divide the 2 query heads");
    check_field("head_dim", json!(20), "head_dim: head width 20 is no multiple of 8");
    check_field("rms_norm_eps", json!(-1.0), "rms_norm_eps: -1.0 is not a positive number");
    check_field("hidden_act", json!("relu"), "hidden_act: \"relu\" is not supported");
    check_field("mlp_bias", json!(true), "mlp_bias: is not supported");
    check_field("tie_word_embeddings", json!(1), "tie_word_embeddings: 1 is not true or false");
    check_field("quantization_config", json!({"quant_method": "gptq"}), "quantised elsewhere");
    check_field("rope_scaling", json!({"rope_type": "yarn"}), "rope_scaling.rope_type: \"yarn\" is not supported");
    check_field("rope_scaling", json!({"type": "linear"}), "rope_scaling.factor: is missing");
    check_field(
        "rope_scaling",
        json!({"rope_type": "llama3", "factor": 8}),
        "rope_scaling.low_freq_factor: is missing",
    );
    check_field("partial_rotary_factor", json!(0.5), "partial rotary embedding");
    check(gemma3().set("final_logit_softcapping", json!(30.0)), "soft caps are not supported");
    check(gemma3().set("layer_types", json!(["full_attention", "full_attention", "x"])), "no steady pattern");
    let qwen2 = llama().set("model_type", json!("qwen2")).set("use_sliding_window", json!(true));
    check(qwen2, "use_sliding_window: is not supported in this architecture");
}

#[test]
fn every_fault_of_the_tensors_is_named() {
    check(llama().without("up_proj"), "tensor \"model.layers.0.mlp.up_proj.weight\" is missing");
    check(llama().without("embed"), "tensor \"model.embed_tokens.weight\" is missing");
    check(llama().set("tie_word_embeddings", json!(false)), "tensor \"lm_head.weight\" is missing");
    check(llama().set("num_hidden_layers", json!(2)), "\"model.layers.1.input_layernorm.weight\" is missing");
    let transposed = llama().edit("up_proj", |tensor| tensor.1.reverse());
    check(transposed, "\"model.layers.0.mlp.up_proj.weight\" has shape [32, 64], expected [64, 32] by config.json");
    check(llama().edit("up_proj", |tensor| tensor.2 = "I16"), "up_proj.weight\" has type I16; F32, F16 and BF16");
    check(llama().edit("up_proj", |tensor| tensor.2 = "F3"), "model.safetensors: tensor \"model.layers.0.mlp.up_proj");
    let biased = llama().add("model.layers.0.self_attn.q_proj.bias", &[32]);
    check(biased, "\"model.layers.0.self_attn.q_proj.bias\" is not supported");
    check(llama().add("lm_head.bias", &[4]), "\"lm_head.bias\" is not supported");
    check(llama().add("model.layers.1.input_layernorm.weight", &[32]), "layers.1.input_layernorm.weight\" is not");
    check(llama().set("attention_bias", json!(true)), "q_proj.bias\" is missing");
}

#[test]
fn every_fault_of_the_files_is_named() {
    let remove = |name: &'static str| move |folder: &Path| std::fs::remove_file(folder.join(name)).unwrap();
    let write =
        |name: &'static str, text: &'static str| move |folder: &Path| std::fs::write(folder.join(name), text).unwrap();
    check_written(&llama(), remove("config.json"), "config.json: No such file");
    check_written(&llama(), remove("tokenizer.json"), "has no tokenizer.json");
    check_written(&llama(), remove("model.safetensors"), "neither model.safetensors nor");
    check_written(&llama(), write("config.json", "{\"model_type\": "), "config.json is not as it should be: EOF");
    check_written(&llama(), write("config.json", "[]"), "config.json is not as it should be");
    check_written(&llama(), write("tokenizer_config.json", "null"), "tokenizer_config.json is not as it should be");
    let truncate = |folder: &Path| {
        let path = folder.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
    };
    check_written(&llama(), truncate, "truncated? download it again");
    let not_text = |folder: &Path| std::fs::write(folder.join("chat_template.jinja"), [0xff, 0xfe]).unwrap();
    check_written(&llama(), not_text, "chat_template.jinja is not as it should be: invalid utf-8");
}

#[test]
fn a_revision_changes_with_every_file_that_matters() {
    let folder = llama().folder();
    let path = |name: &str| folder.path().join(name);
    let first = revision(folder.path(), None).unwrap();
    assert_eq!(first.len(), 64);
    assert_eq!(revision(folder.path(), Some(Quantisation::Q4_0)).unwrap(), format!("{first}+q4_0"));
    let mut seen = vec![first.clone()];
    for name in
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    {
        std::fs::write(path(name), "{ }").unwrap();
        seen.push(revision(folder.path(), None).unwrap());
    }
    std::fs::write(path("chat_template.jinja"), "x").unwrap();
    seen.push(revision(folder.path(), None).unwrap());
    let mut weights = std::fs::read(path("model.safetensors")).unwrap();
    *weights.last_mut().unwrap() ^= 1;
    std::fs::write(path("model.safetensors"), weights).unwrap();
    seen.push(revision(folder.path(), None).unwrap());
    // What does not matter changes nothing.
    let before = stamp(folder.path()).unwrap();
    std::fs::write(path("README.md"), "x").unwrap();
    std::fs::write(path("pytorch_model.bin"), "x").unwrap();
    assert_eq!(revision(folder.path(), None).unwrap(), seen[seen.len() - 1]);
    assert_eq!(stamp(folder.path()).unwrap(), before);
    std::fs::write(path("config.json"), "{  }").unwrap();
    assert_ne!(stamp(folder.path()).unwrap(), before);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 8);
}

#[test]
fn small_files_are_read_without_weights() {
    let folder = llama().folder();
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let text = TextFiles::open(folder.path()).unwrap();
    assert_eq!((text.context_tokens().unwrap(), text.chat_template().unwrap()), (128, None));
    assert_eq!(text.config_value("vocab_size"), Some(&json!(4)));
}
