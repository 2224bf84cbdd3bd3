//! Encoders' folders: the real one, and every way in which one can be wrong, said with file and field.

use engine_store::{EncoderCheckpoint, Pooling, ShorterVectors, revision, stamp};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn minilm() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/models/minilm")
}

#[test]
fn the_real_one() {
    let checkpoint =
        EncoderCheckpoint::open(&minilm()).unwrap_or_else(|error| panic!("{error}: run `cargo xtask setup`"));
    let config = checkpoint.config();
    assert_eq!((config.layers, config.width, config.ffn_width, config.heads), (6, 384, 1536, 12));
    assert_eq!((config.vocab, config.context_tokens, config.norm_epsilon), (30_522, 256, 1e-12));
    assert_eq!((config.pooling, &config.shorter), (Pooling::Mean, &ShorterVectors::None));
    assert!(EncoderCheckpoint::is_one(&minilm()) && !EncoderCheckpoint::is_one(Path::new("/")));
    let summary = checkpoint.inspect();
    // All but position_ids and the pooler, which are not used.
    assert_eq!((summary.parameters, summary.weight_bytes), (22_565_376, 4 * 22_565_376));
    assert_eq!((summary.architecture.as_str(), summary.quantisation["F32"].0), ("bert", 101));
    assert_eq!(revision(&minilm(), None).expect("a digest").len(), 64);
}

/// A BERT of two heads of eight, in a folder.
struct Small {
    folder: TempDir,
}

impl Small {
    fn new() -> Self {
        let small = Self { folder: tempfile::tempdir().expect("a folder") };
        small.json("config.json", &Self::config());
        small.weights(|_| true);
        std::fs::write(small.path("tokenizer.json"), "{}").expect("writable");
        small
    }

    fn config() -> Value {
        json!({"model_type": "bert", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 5, "max_position_embeddings": 7})
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn json(&self, name: &str, value: &Value) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("writable");
        std::fs::write(path, value.to_string()).expect("writable");
    }

    /// Writes the tensors that are wanted, in f32 zeros.
    fn weights(&self, wanted: impl Fn(&str) -> bool) {
        let mut tensors = vec![
            ("embeddings.word_embeddings.weight".to_owned(), vec![5, 16]),
            ("embeddings.position_embeddings.weight".to_owned(), vec![7, 16]),
            ("embeddings.token_type_embeddings.weight".to_owned(), vec![2, 16]),
        ];
        for norm in ["embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"] {
            tensors.extend(["weight", "bias"].map(|part| (format!("{norm}.LayerNorm.{part}"), vec![16])));
        }
        for (name, out, input) in [
            ("attention.self.query", 16, 16),
            ("attention.self.key", 16, 16),
            ("attention.self.value", 16, 16),
            ("attention.output.dense", 16, 16),
            ("intermediate.dense", 32, 16),
            ("output.dense", 16, 32),
        ] {
            tensors.push((format!("encoder.layer.0.{name}.weight"), vec![out, input]));
            tensors.push((format!("encoder.layer.0.{name}.bias"), vec![out]));
        }
        let mut header = serde_json::Map::new();
        let mut end = 0;
        for (name, shape) in tensors.into_iter().filter(|(name, _)| wanted(name)) {
            let start = end;
            end += 4 * shape.iter().product::<usize>();
            header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]}));
        }
        let header = Value::Object(header).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; end]].concat();
        std::fs::write(self.path("model.safetensors"), bytes).expect("writable");
    }

    fn open(&self) -> Result<EncoderCheckpoint, String> {
        EncoderCheckpoint::open(self.folder.path()).map_err(|error| error.to_string())
    }

    fn refused(&self, parts: &[&str]) {
        let error = self.open().expect_err("it is wrong");
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
    }
}

#[test]
fn what_sentence_transformers_puts_beside_a_model_counts() {
    let small = Small::new();
    let config = |small: &Small| small.open().expect("a checkpoint").config().clone();
    assert_eq!((config(&small).context_tokens, config(&small).pooling), (7, Pooling::Mean));
    small.json("sentence_bert_config.json", &json!({"max_seq_length": 4}));
    small.json("1_Pooling/config.json", &json!({"pooling_mode_cls_token": true}));
    assert_eq!((config(&small).context_tokens, config(&small).pooling), (4, Pooling::FirstToken));
    small.json("sentence_bert_config.json", &json!({"max_seq_length": 9}));
    assert_eq!(config(&small).context_tokens, 7, "there are no more positions");
    for (field, value, expected) in [
        ("is_matryoshka", json!(true), ShorterVectors::Any),
        ("matryoshka_dimensions", json!([8]), ShorterVectors::Of(vec![8])),
    ] {
        let mut file = Small::config();
        file[field] = value;
        small.json("config.json", &file);
        assert_eq!(config(&small).shorter, expected);
    }
}

#[test]
fn wrong_configurations_name_their_field() {
    let check = |field: &str, value: Value, parts: &[&str]| {
        let small = Small::new();
        let mut file = Small::config();
        file[field] = value;
        small.json("config.json", &file);
        small.refused(parts);
    };
    check("model_type", json!("roberta"), &["config.json", "model_type", "roberta"]);
    check("is_decoder", json!(true), &["model_type"]);
    check("hidden_size", json!(20), &["hidden_size", "multiple of 8 for each of 2 heads"]);
    check("hidden_size", json!(0), &["hidden_size", "outside 1..="]);
    check("num_hidden_layers", json!(1 << 30), &["num_hidden_layers", "outside"]);
    check("vocab_size", json!("many"), &["config.json", "invalid type"]);
    check("intermediate_size", json!(33), &["intermediate_size", "multiple of 8"]);
    check("layer_norm_eps", json!(0.0), &["layer_norm_eps"]);
    check("hidden_act", json!("relu"), &["hidden_act", "relu"]);
    check("position_embedding_type", json!("relative_key"), &["position_embedding_type"]);
    check("vocab_size", json!(6), &["word_embeddings", "shape [5, 16], expected [6, 16]"]);
    check("max_position_embeddings", json!(8), &["position_embeddings", "expected [8, 16]"]);
    check("num_hidden_layers", json!(2), &["encoder.layer.1"]);
}

#[test]
fn wrong_files_are_named() {
    let small = Small::new();
    std::fs::remove_file(small.path("config.json")).expect("it is there");
    small.refused(&["config.json", "no such file"]);
    assert!(!EncoderCheckpoint::is_one(small.folder.path()));

    let small = Small::new();
    std::fs::write(small.path("config.json"), "{").expect("writable");
    small.refused(&["config.json", "EOF"]);
    std::fs::write(small.path("config.json"), vec![b' '; (1 << 20) + 1]).expect("writable");
    small.refused(&["config.json", "1048577 bytes"]);

    let small = Small::new();
    small.weights(|name| !name.contains("intermediate.dense.bias"));
    small.refused(&["encoder.layer.0.intermediate.dense.bias"]);
    std::fs::remove_file(small.path("model.safetensors")).expect("it is there");
    small.refused(&["model.safetensors"]);

    let small = Small::new();
    small.json("1_Pooling/config.json", &json!({"pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true}));
    small.refused(&["1_Pooling", "pooling_mode"]);
    small.json("1_Pooling/config.json", &json!({"pooling_mode_mean_tokens": true}));
    small.json("modules.json", &json!([{"type": "sentence_transformers.models.Dense"}]));
    small.refused(&["modules.json", "models.Dense"]);
}

#[test]
fn whatever_answers_depend_on_changes_the_revision() {
    let small = Small::new();
    let digest = |small: &Small| revision(small.folder.path(), None).expect("a digest");
    let look = |small: &Small| stamp(small.folder.path()).expect("a stamp");
    let (first, seen_stamp) = (digest(&small), look(&small));
    small.json("README.md", &json!("of no influence"));
    assert_eq!((digest(&small), look(&small)), (first.clone(), seen_stamp));
    let mut seen = vec![first];
    small.json("1_Pooling/config.json", &json!({"pooling_mode_cls_token": true}));
    seen.push(digest(&small));
    std::fs::write(small.path("tokenizer.json"), "{ }").expect("writable");
    seen.push(digest(&small));
    seen.dedup();
    assert_eq!(seen.len(), 3);
    assert_ne!(look(&small), seen_stamp);
}
