//! Reading checkpoints: a small one written here, everything that can be wrong with it, and the real one.

use engine_store::{Architecture, GgmlType, Gguf, GgufError, Value, digest};
use proptest::prelude::*;

/// A metadata value to write, with its type number.
#[derive(Clone)]
enum Write {
    U32(u32),
    F32(f32),
    Str(&'static str),
    Strings(Vec<&'static str>),
    F32s(Vec<f32>),
}

/// A tensor to write: name, dimensions, type number, offset in the data section.
type Tensor = (String, Vec<u64>, u32, u64);

#[derive(Clone)]
struct File {
    magic: [u8; 4],
    version: u32,
    counts: Option<(u64, u64)>,
    pairs: Vec<(&'static str, Write)>,
    tensors: Vec<Tensor>,
    data_bytes: usize,
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl File {
    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        let (tensors, pairs) = self.counts.unwrap_or((self.tensors.len() as u64, self.pairs.len() as u64));
        out.extend(tensors.to_le_bytes());
        out.extend(pairs.to_le_bytes());
        for (key, value) in &self.pairs {
            string(&mut out, key);
            value.write(&mut out);
        }
        for (name, dims, kind, offset) in &self.tensors {
            string(&mut out, name);
            out.extend((dims.len() as u32).to_le_bytes());
            dims.iter().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.resize(out.len() + self.data_bytes, 1);
        out
    }

    fn open(&self) -> Result<Gguf, GgufError> {
        Gguf::from_bytes(self.bytes())
    }

    fn set(mut self, key: &'static str, value: Write) -> Self {
        self.pairs.retain(|(other, _)| *other != key);
        self.pairs.push((key, value));
        self
    }

    fn tensor(mut self, name: &str, edit: impl FnOnce(&mut Tensor)) -> Self {
        edit(self.tensors.iter_mut().find(|tensor| tensor.0 == name).expect("the tensor is there"));
        self
    }
}

impl Write {
    fn write(&self, out: &mut Vec<u8>) {
        let mut number = |kind: u32, bytes: &[u8]| {
            out.extend(kind.to_le_bytes());
            out.extend(bytes);
        };
        match self {
            Write::U32(x) => number(4, &x.to_le_bytes()),
            Write::F32(x) => number(6, &x.to_le_bytes()),
            Write::Str(x) => {
                number(8, &[]);
                string(out, x);
            }
            Write::Strings(x) => {
                number(9, &8u32.to_le_bytes());
                out.extend((x.len() as u64).to_le_bytes());
                x.iter().for_each(|x| string(out, x));
            }
            Write::F32s(x) => {
                number(9, &6u32.to_le_bytes());
                out.extend((x.len() as u64).to_le_bytes());
                x.iter().for_each(|x| out.extend(x.to_le_bytes()));
            }
        }
    }
}

/// A whole one-layer llama: width 32, two heads of 16, one KV head, vocabulary of 4.
fn llama() -> File {
    let pairs = vec![
        ("general.architecture", Write::Str("llama")),
        ("general.name", Write::Str("tiny")),
        ("llama.block_count", Write::U32(1)),
        ("llama.embedding_length", Write::U32(32)),
        ("llama.feed_forward_length", Write::U32(64)),
        ("llama.context_length", Write::U32(128)),
        ("llama.attention.head_count", Write::U32(2)),
        ("llama.attention.head_count_kv", Write::U32(1)),
        ("llama.attention.layer_norm_rms_epsilon", Write::F32(1e-5)),
        ("tokenizer.ggml.tokens", Write::Strings(vec!["a", "", "né", "<|end|>"])),
        ("tokenizer.ggml.scores", Write::F32s(vec![0.5, -1.0])),
    ];
    let shapes: [(&str, &[u64], u32); 11] = [
        ("token_embd.weight", &[32, 4], 8),
        ("output_norm.weight", &[32], 0),
        ("blk.0.attn_norm.weight", &[32], 0),
        ("blk.0.attn_q.weight", &[32, 32], 3),
        ("blk.0.attn_k.weight", &[32, 16], 3),
        ("blk.0.attn_v.weight", &[32, 16], 3),
        ("blk.0.attn_output.weight", &[32, 32], 3),
        ("blk.0.ffn_norm.weight", &[32], 0),
        ("blk.0.ffn_gate.weight", &[32, 64], 2),
        ("blk.0.ffn_up.weight", &[32, 64], 1),
        ("blk.0.ffn_down.weight", &[64, 32], 3),
    ];
    let mut offset = 0u64;
    let mut tensors = Vec::new();
    for (name, dims, kind) in shapes {
        let elements: u64 = dims.iter().product();
        tensors.push((name.to_owned(), dims.to_vec(), kind, offset));
        let bytes = match kind {
            0 => elements * 4,
            1 => elements * 2,
            2 => elements / 32 * 18,
            3 => elements / 32 * 20,
            _ => elements / 32 * 34,
        };
        offset = (offset + bytes).next_multiple_of(32);
    }
    File { magic: *b"GGUF", version: 3, counts: None, pairs, tensors, data_bytes: offset as usize }
}

#[test]
fn metadata_and_tensors_are_read_in_place() {
    for version in [2, 3] {
        let gguf = File { version, ..llama() }.open().unwrap();
        assert_eq!(gguf.version(), version);
        let tokens: Vec<&str> = gguf.strings("tokenizer.ggml.tokens").unwrap().collect();
        assert_eq!(tokens, ["a", "", "né", "<|end|>"]);
        assert_eq!(gguf.f32s("tokenizer.ggml.scores").unwrap(), [0.5, -1.0]);
        assert_eq!(gguf.value("llama.block_count"), Some(Value::U64(1)));
        assert_eq!(gguf.optional("no.such.key", Gguf::u32).unwrap(), None);
        let tensor = gguf.tensor("blk.0.ffn_down.weight").unwrap();
        assert_eq!((tensor.dims, tensor.kind, tensor.bytes.len()), (&[64, 32][..], GgmlType::Q4_1, 64 * 20));
        assert_eq!(&*gguf.tensor_data("blk.0.ffn_down.weight").unwrap(), tensor.bytes);
        let config = gguf.validate().unwrap();
        assert_eq!((config.head_dim, config.vocab, config.tied, config.rope_base), (16, 4, true, 10_000.0));
        let summary = gguf.inspect().unwrap();
        assert_eq!((summary.architecture.as_str(), summary.name.as_deref()), ("llama", Some("tiny")));
        assert_eq!((summary.layers, summary.vocab, summary.context_tokens), (Some(1), Some(4), Some(128)));
        assert_eq!(summary.quantisation["Q4_1"], (5, 3_200));
        assert_eq!(summary.unsupported, None);
    }
}

/// The error's text must name what is wrong.
fn check(file: &File, expected: &str) {
    let error = match file.open().and_then(|gguf| gguf.validate()) {
        Ok(_) => panic!("accepted, expected {expected:?}"),
        Err(error) => error.to_string(),
    };
    assert!(error.contains(expected), "{error:?} does not say {expected:?}");
}

#[test]
fn every_fault_is_named() {
    let down = "blk.0.ffn_down.weight";
    check(&File { magic: *b"PK\x03\x04", ..llama() }, "not a GGUF file");
    check(&File { version: 1, ..llama() }, "version 1 is not supported");
    check(&File { version: 3u32.swap_bytes(), ..llama() }, "is not supported");
    check(&File { counts: Some((u64::MAX, 3)), ..llama() }, "tensor count is 18446744073709551615");
    check(&File { counts: Some((3, 1 << 60)), ..llama() }, "metadata count");
    check(&File { data_bytes: 100, ..llama() }, "tensor \"token_embd.weight\" ends at byte");
    check(&llama().tensor(down, |tensor| tensor.3 += 7), "tensor \"blk.0.ffn_down.weight\": offset");
    check(&llama().tensor(down, |tensor| tensor.3 = 0), "overlap");
    check(&llama().tensor(down, |tensor| tensor.3 = u64::MAX - 31), "ends at byte");
    check(&llama().tensor(down, |tensor| tensor.2 = 77), "tensor \"blk.0.ffn_down.weight\" has unknown type number 77");
    check(&llama().tensor(down, |tensor| tensor.1 = vec![32; 5]), "5 dimensions");
    check(&llama().tensor(down, |tensor| tensor.1 = vec![64, 0]), "a dimension is zero");
    check(&llama().tensor(down, |tensor| tensor.1 = vec![33, 32]), "no multiple of Q4_1's block of 32");
    check(&llama().tensor(down, |tensor| tensor.1 = vec![1 << 40, 1 << 40]), "overflow");
    check(&llama().tensor(down, |tensor| tensor.1 = vec![32, 32]), "shape [32, 32], expected [64, 32]");
    check(&llama().tensor(down, |tensor| tensor.2 = 20), "type IQ4_NL is not supported");
    check(&llama().tensor(down, |tensor| tensor.0 = "blk.0.attn_q.weight".into()), "appears twice");
    check(&llama().tensor(down, |tensor| tensor.0 = "other".into()), "tensor \"blk.0.ffn_down.weight\" is missing");
    check(&llama().tensor(down, |tensor| tensor.0 = "blk.0.attn_q.bias".into()), "is missing");
    check(&llama().set("general.architecture", Write::Str("mamba")), "architecture \"mamba\" is not supported");
    check(&llama().set("general.architecture", Write::U32(1)), "is an unsigned integer, expected a string");
    check(&llama().set("general.alignment", Write::U32(0)), "general.alignment");
    check(&llama().set("llama.attention.head_count", Write::U32(0)), "llama.attention.head_count");
    check(&llama().set("llama.attention.head_count_kv", Write::U32(3)), "does not divide");
    check(&llama().set("llama.attention.key_length", Write::U32(20)), "no multiple of 8");
    check(&llama().set("llama.rope.scaling.type", Write::Str("yarn")), "\"yarn\" is not supported");
    check(&llama().set("llama.expert_count", Write::U32(8)), "mixtures of experts");
    let mut twice = llama();
    twice.pairs.push(("general.name", Write::Str("again")));
    check(&twice, "metadata key \"general.name\" appears twice");
    let mut missing = llama();
    missing.pairs.retain(|(key, _)| *key != "llama.context_length");
    check(&missing, "metadata key \"llama.context_length\" is missing");
}

/// The same, as a Gemma 3: with the norms that it adds.
fn gemma3() -> File {
    let mut file = llama();
    for (key, _) in &mut file.pairs {
        if let Some(rest) = key.strip_prefix("llama.") {
            *key = format!("gemma3.{rest}").leak();
        }
    }
    for (part, len) in [("attn_q_norm", 16), ("attn_k_norm", 16), ("post_attention_norm", 32), ("post_ffw_norm", 32)] {
        file.tensors.push((format!("blk.0.{part}.weight"), vec![len], 0, file.data_bytes as u64));
        file.data_bytes += 128;
    }
    file.set("general.architecture", Write::Str("gemma3")).set("gemma3.attention.sliding_window", Write::U32(512))
}

#[test]
fn gemma3_is_read_with_what_its_files_leave_out() {
    let config = gemma3().open().unwrap().validate().unwrap();
    assert_eq!(config.architecture, Architecture::Gemma3);
    assert_eq!(config.sliding.and_then(|sliding| sliding.rope_base), Some(10_000.0));
    let windows: Vec<bool> = (0..13).map(|layer| config.window(layer) == Some(512)).collect();
    let global: Vec<usize> = (0..13).filter(|layer| !windows[*layer]).collect();
    assert_eq!(global, [5, 11]);
    assert_eq!(config.query_scale(), 0.25);

    let norm = "blk.0.attn_q_norm.weight";
    check(&gemma3().tensor(norm, |tensor| tensor.1 = vec![32]), "shape [32], expected [16]");
    check(&gemma3().tensor(norm, |tensor| tensor.0 = "other".into()), "\"blk.0.attn_q_norm.weight\" is missing");
    check(&gemma3().set("gemma3.attention.sliding_window", Write::U32(0)), "gemma3.attention.sliding_window");
    check(&gemma3().set("gemma3.final_logit_softcapping", Write::F32(30.0)), "soft caps are not supported");
}

/// What would change the answers, but would be left out of them.
#[test]
fn tensors_that_nothing_reads_are_refused() {
    for name in ["blk.0.attn_q.bias", "blk.0.attn_q_norm.weight", "blk.0.post_ffw_norm.weight"] {
        let mut file = llama();
        file.tensors.push((name.to_owned(), vec![16], 0, file.data_bytes as u64));
        file.data_bytes += 64;
        check(&file, &format!("tensor {name:?}: not supported"));
    }
    let mut file = llama();
    file.tensors.push(("rope_freqs.weight".to_owned(), vec![16], 0, file.data_bytes as u64));
    file.data_bytes += 64;
    check(&file, "\"rope_freqs.weight\": shape [16], expected [8]");
    file.pairs.iter_mut().for_each(|(key, _)| *key = key.replace("llama.", "qwen2.").leak());
    let file = file.set("general.architecture", Write::Str("qwen2"));
    check(&file, "tensor \"blk.0.attn_q.bias\" is missing");
    let windowed = file.set("qwen2.attention.sliding_window", Write::U32(512));
    check(&windowed, "sliding windows are not supported");
}

#[test]
fn bad_text_and_missing_files_are_named() {
    let mut bytes = llama().bytes();
    let at = bytes.windows(4).position(|window| window == b"tiny").unwrap();
    bytes[at] = 0xff;
    let error = Gguf::from_bytes(bytes).unwrap_err().to_string();
    assert!(error.contains("\"general.name\" is not valid UTF-8"), "{error}");
    let error = Gguf::open("/no/such/file.gguf").unwrap_err().to_string();
    assert!(error.contains("/no/such/file.gguf"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    assert!(Gguf::open(folder.path()).unwrap_err().to_string().contains("not a regular file"));
    let empty = folder.path().join("empty.gguf");
    std::fs::write(&empty, "").unwrap();
    assert!(matches!(Gguf::open(&empty), Err(GgufError::Truncated { .. })));
    std::fs::write(&empty, "abc").unwrap();
    assert_eq!(digest(&empty).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

/// Uses everything that a reader of a checkpoint uses.
fn exercise(bytes: Vec<u8>) {
    let Ok(gguf) = Gguf::from_bytes(bytes) else { return };
    let _ = (gguf.inspect(), gguf.validate());
    for key in gguf.keys() {
        if let Some(Value::Array(array)) = gguf.value(key) {
            assert!(array.strings().is_none_or(|strings| strings.count() == array.len()));
            assert!(array.scalars().count() <= array.len());
        }
    }
    for tensor in gguf.tensors() {
        assert_eq!(tensor.kind.bytes(tensor.elements()), Some(tensor.bytes.len() as u64));
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = llama().bytes();
    // Every cut in the header, and sparser ones in the data. Only the last tensor's padding may go.
    let header = bytes.len() - llama().data_bytes;
    for len in (0..header).chain((header..bytes.len() - 32).step_by(97)) {
        assert!(Gguf::from_bytes(bytes[..len].to_vec()).is_err(), "accepted the first {len} bytes");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn damaged_bytes_never_panic(flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let file = llama();
        let mut bytes = file.bytes();
        let header = bytes.len() - file.data_bytes;
        for (index, value) in flips {
            bytes[index.index(header)] = value;
        }
        exercise(bytes);
    }

    #[test]
    fn huge_numbers_never_panic(at in any::<prop::sample::Index>(), value in prop_oneof![Just(u64::MAX), Just(1 << 63), Just(1 << 40), any::<u64>()]) {
        let file = llama();
        let mut bytes = file.bytes();
        let start = at.index(bytes.len() - file.data_bytes - 8);
        bytes[start..start + 8].copy_from_slice(&value.to_le_bytes());
        exercise(bytes);
    }

    #[test]
    fn noise_never_panics(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        exercise([b"GGUF\x03\0\0\0".to_vec(), noise].concat());
    }
}

#[test]
fn the_real_checkpoint_is_what_it_claims() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("target/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let gguf =
        Gguf::open(&path).unwrap_or_else(|error| panic!("{error}\nfetch the checkpoint with: cargo xtask setup"));
    let summary = gguf.inspect().unwrap();
    assert_eq!((summary.parameters, summary.file_bytes), (134_515_008, 98_362_432));
    assert_eq!((summary.layers, summary.vocab, summary.context_tokens), (Some(30), Some(49_152), Some(8192)));
    let tensors: Vec<(&str, u64)> = summary.quantisation.iter().map(|(kind, row)| (kind.as_str(), row.0)).collect();
    assert_eq!(tensors, [("F32", 61), ("Q4_1", 210), ("Q8_0", 1)]);
    assert!(summary.chat_template && summary.unsupported.is_none());
    assert_eq!(gguf.strings("tokenizer.ggml.tokens").unwrap().nth(2), Some("<|im_end|>"));
    assert_eq!(digest(&path).unwrap(), "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53");
}

#[test]
fn the_real_gemma3_is_what_it_claims() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("target/models/gemma3-270m/gemma3-270m-q4_k_m.gguf");
    let gguf =
        Gguf::open(&path).unwrap_or_else(|error| panic!("{error}\nfetch the checkpoint with: cargo xtask setup"));
    let summary = gguf.inspect().unwrap();
    assert_eq!((summary.architecture.as_str(), summary.file_bytes), ("gemma3", 253_113_024));
    assert_eq!((summary.layers, summary.vocab, summary.context_tokens), (Some(18), Some(262_144), Some(32_768)));
    let tensors: Vec<(&str, u64)> = summary.quantisation.iter().map(|(kind, row)| (kind.as_str(), row.0)).collect();
    assert_eq!(tensors, [("F32", 109), ("Q4_K", 27), ("Q5_0", 81), ("Q6_K", 9), ("Q8_0", 10)]);
    assert_eq!((summary.chat_template, summary.unsupported), (false, None));
}
