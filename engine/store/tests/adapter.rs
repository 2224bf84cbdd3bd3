//! Adapters in PEFT's format: what is read, and what is refused with which words.

#[path = "made/adapter.rs"]
mod made;

use engine_store::{Adapter, Architecture, Biases, Linear, ModelConfig, Rotation, adapter_digest};
use made::{Shape, Tensor, config, tensors, write};
use serde_json::{Map, Value, json};

const SHAPE: Shape = Shape { width: 16, q: 32, kv: 16, ffn: 24 };
const LAYERS: usize = 3;
const RANK: usize = 4;

fn base(architecture: Architecture) -> ModelConfig {
    ModelConfig {
        architecture,
        layers: LAYERS,
        width: SHAPE.width,
        ffn_width: SHAPE.ffn,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        vocab: 10,
        context_tokens: 64,
        rope_base: 1e4,
        rope_scale: 1.0,
        norm_epsilon: 1e-5,
        rotation: if architecture == Architecture::Llama { Rotation::Neighbours } else { Rotation::Halves },
        biases: Biases::None,
        query_width: 8,
        tied: true,
        sliding: None,
    }
}

/// An adapter's files before they are written.
struct Files {
    config: Map<String, Value>,
    tensors: Vec<Tensor>,
}

impl Files {
    fn set(&mut self, field: &str, value: Value) {
        self.config.insert(field.to_owned(), value);
    }

    fn keep(&mut self, wanted: impl Fn(&str) -> bool) {
        self.tensors.retain(|(name, ..)| wanted(name));
    }

    fn tensor(&mut self, part: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|(name, ..)| name.contains(part)).expect("it is there")
    }
}

/// Opens an adapter that was good before the change.
fn opened(change: impl FnOnce(&mut Files)) -> Result<Adapter, String> {
    let folder = tempfile::tempdir().expect("a folder");
    let mut files = Files { config: config(RANK), tensors: tensors(SHAPE, &[0, 1, 2], RANK, 1, 0.1) };
    change(&mut files);
    write(folder.path(), &files.config, &files.tensors);
    Adapter::open(folder.path(), &base(Architecture::Llama)).map_err(|error| error.to_string())
}

fn good(change: impl FnOnce(&mut Files), parts: usize) {
    let adapter = opened(change).unwrap_or_else(|error| panic!("refused: {error}"));
    let places = (0..LAYERS).flat_map(|layer| Linear::ALL.map(|linear| (layer, linear)));
    assert_eq!(places.filter(|(layer, linear)| adapter.low_rank(*layer, *linear).is_some()).count(), parts);
}

fn bad(change: impl FnOnce(&mut Files), expected: &str) {
    match opened(change) {
        Ok(_) => panic!("accepted, expected {expected:?}"),
        Err(message) => assert!(message.contains(expected), "{message:?}, expected {expected:?}"),
    }
}

#[test]
fn targets_follow_peft() {
    good(|_| (), 21);
    good(|files| files.set("target_modules", json!("ALL-LINEAR")), 21);
    let only_qv = |files: &mut Files| files.keep(|name| name.contains("q_proj") || name.contains("v_proj"));
    for targets in [
        json!(["q_proj", "v_proj"]),
        json!(["self_attn.q_proj", "v_proj"]),
        json!(r".*\.(q|v)_proj"),
        json!(r"model\.layers\.\d+\.self_attn\.[qv]_proj"),
    ] {
        good(
            |files| {
                only_qv(files);
                files.set("target_modules", targets);
            },
            6,
        );
    }
    good(
        |files| {
            files.keep(|name| name.contains("layers.1."));
            files.set("layers_to_transform", json!(1));
        },
        7,
    );
    good(
        |files| {
            files.keep(|name| !name.contains("layers.1."));
            files.set("layers_to_transform", json!([0, 2]));
            files.set("layers_pattern", json!("layers"));
        },
        14,
    );
    good(
        |files| {
            files.keep(|name| name.contains("layers.2.mlp.down_proj"));
            files.set("target_modules", json!(["model.layers.2.mlp.down_proj"]));
        },
        1,
    );
    // Fields of later versions at their neutral values change nothing.
    good(|files| files.set("use_something_new", json!(false)), 21);
    good(|files| files.set("something_config", json!({})), 21);
    // As PEFT names them when it wrapped a model without a head.
    let headless = |files: &mut Files| {
        files.tensors.iter_mut().for_each(|(name, ..)| *name = name.replace("model.model.layers", "model.layers"));
    };
    good(headless, 21);
}

#[test]
fn unsupported_fields_are_refused_by_name() {
    for (field, value, expected) in [
        ("peft_type", json!("IA3"), r#"field "peft_type" is "IA3"; only "LORA""#),
        ("bias", json!("all"), r#"field "bias" is "all"; only "none""#),
        ("bias", json!("lora_only"), r#"field "bias""#),
        ("lora_bias", json!(true), r#"field "lora_bias""#),
        ("use_dora", json!(true), r#"field "use_dora" is true"#),
        ("fan_in_fan_out", json!(true), r#"field "fan_in_fan_out" is true"#),
        ("modules_to_save", json!(["lm_head"]), r#"field "modules_to_save" is ["lm_head"]"#),
        ("exclude_modules", json!("x"), r#"field "exclude_modules""#),
        ("rank_pattern", json!({"q_proj": 8}), r#"field "rank_pattern""#),
        ("alpha_pattern", json!({"q_proj": 8}), r#"field "alpha_pattern""#),
        ("task_type", json!("SEQ_CLS"), r#"field "task_type" is "SEQ_CLS""#),
        ("init_lora_weights", json!("pissa"), r#"field "init_lora_weights" is "pissa""#),
        ("layer_replication", json!([[0, 2]]), r#"field "layer_replication""#),
        ("alora_invocation_tokens", json!([1]), r#"field "alora_invocation_tokens""#),
        ("trainable_token_indices", json!([1]), r#"field "trainable_token_indices""#),
        ("use_something_new", json!(true), r#"field "use_something_new" is true, and this runtime does not know"#),
        ("layers_pattern", json!("h"), r#"field "layers_pattern" is "h""#),
        (
            "layers_to_transform",
            json!([3]),
            r#"field "layers_to_transform" names layer 3, but the base has layers 0 to 2"#,
        ),
        ("layers_to_transform", json!("all"), r#"field "layers_to_transform""#),
        ("r", json!(0), r#"field "r" is 0; ranks from 1 to 256"#),
        ("r", json!(257), r#"field "r" is 257"#),
        ("r", json!(1.5), r#"field "r" is 1.5"#),
        ("lora_alpha", json!("x"), r#"field "lora_alpha" is "x""#),
        ("lora_alpha", json!(1e300), r#"field "lora_alpha""#),
        ("use_rslora", json!(1), r#"field "use_rslora" is 1"#),
        ("target_modules", json!([]), r#"field "target_modules" is empty"#),
        ("target_modules", json!(null), r#"field "target_modules" is missing"#),
        ("target_modules", json!([1]), r#"field "target_modules" has items"#),
        ("target_modules", json!(["q_proj", "lm_head"]), r#"names "lm_head", which cannot be adapted"#),
        ("target_modules", json!("(unclosed"), r#"field "target_modules" is no regular expression"#),
        ("target_modules", json!("(?=q)q_proj"), r#"field "target_modules" is no regular expression"#),
    ] {
        bad(|files| files.set(field, value.clone()), expected);
    }
    bad(|files| drop(files.config.remove("r")), r#"field "r" is missing"#);
    bad(|files| drop(files.config.remove("lora_alpha")), r#"field "lora_alpha" is missing"#);
    bad(|files| drop(files.config.remove("peft_type")), r#"field "peft_type" is missing"#);
}

#[test]
fn tensors_are_checked_against_the_base() {
    let q_a = "layers.0.self_attn.q_proj.lora_A";
    let named = |name: &str| (name.to_owned(), vec![1], vec![0.0]);
    bad(
        |files| *files.tensor(q_a) = (files.tensor(q_a).0.clone(), vec![4, 15], vec![0.0; 60]),
        r#"tensor "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" has shape [4, 15], expected [4, 16]"#,
    );
    bad(|files| files.set("r", json!(8)), "has shape [4, 16], expected [8, 16]");
    bad(|files| files.tensor(q_a).2[17] = f32::NAN, "has numbers that are not finite");
    bad(|files| files.tensor("layers.2.mlp.up_proj.lora_B").2[0] = f32::INFINITY, "has numbers that are not finite");
    bad(
        |files| files.keep(|name| !name.contains("layers.1.mlp.down_proj.lora_B")),
        r#"tensor "base_model.model.model.layers.1.mlp.down_proj.lora_B.weight" is missing"#,
    );
    bad(|files| files.set("target_modules", json!(["q_proj"])), "changes a layer that target_modules and");
    bad(|files| files.set("target_modules", json!("nothing")), "changes a layer that target_modules and");
    bad(
        |files| {
            files.tensors.clear();
            files.set("target_modules", json!("nothing"));
        },
        "matches no linear layer",
    );
    bad(|files| files.tensors.push(named("base_model.model.lm_head.lora_A.weight")), "is no low-rank matrix");
    bad(
        |files| files.tensors.push(named("base_model.model.model.layers.0.self_attn.q_proj.lora_A.bias")),
        "is no lora_A.weight or lora_B.weight",
    );
    bad(
        |files| files.tensors.push(named("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight")),
        "names layer 9, but the base has layers 0 to 2",
    );
    bad(
        |files| {
            let (name, ..) = files.tensor("layers.1.mlp.up_proj.lora_A");
            *name = name.replace("model.model.layers", "model.layers");
        },
        "is one of several models'",
    );
}

#[test]
fn files_are_checked() {
    let folder = tempfile::tempdir().expect("a folder");
    let open = || Adapter::open(folder.path(), &base(Architecture::Llama)).err().map(|error| error.to_string());
    let check = |expected: &str| {
        let message = open().expect("refused");
        assert!(message.contains(expected), "{message:?}, expected {expected:?}");
    };
    check("adapter_config.json: No such file");
    std::fs::write(folder.path().join("adapter_config.json"), b"{").expect("a file");
    check("is not valid JSON");
    std::fs::write(folder.path().join("adapter_config.json"), vec![b' '; (1 << 20) + 1]).expect("a file");
    check("more than the limit");
    write(folder.path(), &config(RANK), &tensors(SHAPE, &[0, 1, 2], RANK, 1, 0.1));
    assert_eq!(open(), None);
    let digest = adapter_digest(folder.path()).expect("files");
    assert_eq!(digest, adapter_digest(folder.path()).expect("files"));
    let weights = folder.path().join("adapter_model.safetensors");
    let bytes = std::fs::read(&weights).expect("a file");
    for cut in [0, 7, 100, bytes.len() - 1] {
        std::fs::write(&weights, &bytes[..cut]).expect("a file");
        assert!(open().is_some(), "cut at {cut}");
        assert_ne!(adapter_digest(folder.path()).ok(), Some(digest.clone()));
    }
    std::fs::remove_file(&weights).expect("it was there");
    check("adapter_model.safetensors");
    let file = folder.path().join("adapter_config.json");
    let refused = Adapter::open(&file, &base(Architecture::Llama)).err().expect("refused").to_string();
    assert!(refused.contains("is no folder"), "{refused}");
}

/// The scale, and rows of q and k in GGUF's order for llama alone.
#[test]
fn matrices_come_in_the_order_of_the_base() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut fields = config(RANK);
    fields.insert("lora_alpha".to_owned(), json!(6));
    fields.insert("use_rslora".to_owned(), json!(true));
    let mut tensors = tensors(SHAPE, &[0, 1, 2], RANK, 1, 0.1);
    for (_, shape, numbers) in tensors.iter_mut().filter(|(name, ..)| name.contains("lora_B")) {
        // Each row says its own number.
        let rank = shape[1];
        numbers.iter_mut().enumerate().for_each(|(index, x)| *x = (index / rank) as f32);
    }
    write(folder.path(), &fields, &tensors);
    let rows = |architecture, linear| -> Vec<f32> {
        let adapter = Adapter::open(folder.path(), &base(architecture)).expect("a good one");
        let found = adapter.low_rank(1, linear).expect("adapted");
        assert_eq!((found.rank, found.scale), (RANK, 3.0));
        found.b.chunks(RANK).map(|row| row[0]).collect()
    };
    let straight = |count: usize| (0..count).map(|row| row as f32).collect::<Vec<_>>();
    let within = [0.0, 4.0, 1.0, 5.0, 2.0, 6.0, 3.0, 7.0];
    let turned =
        |heads: usize| (0..heads).flat_map(|head| within.map(|row| row + head as f32 * 8.0)).collect::<Vec<_>>();
    assert_eq!(rows(Architecture::Llama, Linear::Q), turned(4));
    assert_eq!(rows(Architecture::Llama, Linear::K), turned(2));
    assert_eq!(rows(Architecture::Llama, Linear::V), straight(16));
    assert_eq!(rows(Architecture::Llama, Linear::Output), straight(16));
    assert_eq!(rows(Architecture::Qwen2, Linear::Q), straight(32));
    assert_eq!(rows(Architecture::Gemma3, Linear::K), straight(16));
}
