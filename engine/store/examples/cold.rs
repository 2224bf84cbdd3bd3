//! The store from a command line, for `cargo xtask bench load`: makes a large checkpoint, ingests it, loads it. Each
//! command answers in one line of JSON.
//!
//!     cold make FILE              a GGUF file of Mistral 7B's configuration in Q8_0 with random weights, 7.7 GB
//!     cold make-safetensors FILE  the first 2.5 GB of it as a safetensors file
//!     cold ingest FILE STORE
//!     cold load STORE NUMBER SEGMENTS [fresh] [waiting] [cached] [threads=N] [depth=N]

use engine_store::{AsStored, Checkpoint, LoadOptions, Segments, Store, load};
use serde_json::{Value, json};
use std::{
    error::Error,
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    time::Instant,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let said = match args[..] {
        ["make", file] => make(Path::new(file))?,
        ["make-safetensors", file] => make_safetensors(Path::new(file))?,
        ["ingest", file, store] => ingest(Path::new(file), Path::new(store))?,
        ["load", store, number, segments, ref options @ ..] => {
            load_model(Path::new(store), number.parse()?, Path::new(segments), options)?
        }
        _ => return Err("usage: cold make FILE | make-safetensors FILE | ingest FILE STORE | load STORE NUMBER SEGMENTS [OPTION]...".into()),
    };
    println!("{said}");
    Ok(())
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

const VOCAB: u64 = 32_000;
/// Types of metadata values in GGUF.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Name, dimensions and whether it is a matrix in Q8_0 or a vector in F32.
type Tensor = (String, Vec<u64>, bool);

/// Mistral 7B's configuration.
fn tensors() -> Vec<Tensor> {
    let (width, ffn, kv, layers) = (4096u64, 14_336u64, 1024u64, 32u64);
    let mut tensors = vec![("token_embd.weight".to_owned(), vec![width, VOCAB], true)];
    for layer in 0..layers {
        let mut add = |part: &str, dims: &[u64]| {
            tensors.push((format!("blk.{layer}.{part}.weight"), dims.to_vec(), dims.len() > 1));
        };
        add("attn_norm", &[width]);
        ["attn_q", "attn_output"].iter().for_each(|part| add(part, &[width, width]));
        ["attn_k", "attn_v"].iter().for_each(|part| add(part, &[width, kv]));
        add("ffn_norm", &[width]);
        ["ffn_gate", "ffn_up"].iter().for_each(|part| add(part, &[width, ffn]));
        add("ffn_down", &[ffn, width]);
    }
    tensors.push(("output_norm.weight".to_owned(), vec![width], false));
    tensors.push(("output.weight".to_owned(), vec![width, VOCAB], true));
    tensors
}

fn bytes(tensor: &Tensor) -> u64 {
    let elements: u64 = tensor.1.iter().product();
    if tensor.2 { elements / 32 * 34 } else { 4 * elements }
}

/// What makes it a model that engines load: its numbers, and a vocabulary of bytes and made-up words.
fn metadata() -> (u64, Vec<u8>) {
    let (mut count, mut out) = (0, Vec::new());
    let mut add = |key: &str, kind: u32, value: &[u8]| {
        count += 1;
        string(&mut out, key);
        out.extend(kind.to_le_bytes());
        out.extend(value);
    };
    let text = |text: &str| {
        let mut out = Vec::new();
        string(&mut out, text);
        out
    };
    let array = |kind: u32, values: Vec<u8>| [&kind.to_le_bytes()[..], &VOCAB.to_le_bytes(), &values].concat();
    add("general.architecture", STRING, &text("llama"));
    let numbers: [(&str, u32); 12] = [
        ("llama.context_length", 4096),
        ("llama.embedding_length", 4096),
        ("llama.block_count", 32),
        ("llama.feed_forward_length", 14_336),
        ("llama.attention.head_count", 32),
        ("llama.attention.head_count_kv", 8),
        ("llama.rope.dimension_count", 128),
        ("llama.vocab_size", VOCAB as u32),
        ("general.file_type", 7),
        ("tokenizer.ggml.bos_token_id", 1),
        ("tokenizer.ggml.eos_token_id", 2),
        ("tokenizer.ggml.unknown_token_id", 0),
    ];
    numbers.iter().for_each(|(key, value)| add(key, U32, &value.to_le_bytes()));
    add("llama.attention.layer_norm_rms_epsilon", F32, &1e-5f32.to_le_bytes());
    add("llama.rope.freq_base", F32, &10_000f32.to_le_bytes());
    add("tokenizer.ggml.model", STRING, &text("llama"));
    let word = |token: u64| match token {
        0 => text("<unk>"),
        1 => text("<s>"),
        2 => text("</s>"),
        3..259 => text(&format!("<0x{:02X}>", token - 3)),
        _ => text(&format!("\u{2581}w{token}")),
    };
    // Unknown, control, bytes, words.
    let kind = |token: u64| [2i32, 3, 3].get(token as usize).copied().unwrap_or(if token < 259 { 6 } else { 1 });
    add("tokenizer.ggml.tokens", ARRAY, &array(STRING, (0..VOCAB).flat_map(word).collect()));
    let score = |token: u64| (-(token as f32)).to_le_bytes();
    add("tokenizer.ggml.scores", ARRAY, &array(F32, (0..VOCAB).flat_map(score).collect()));
    add(
        "tokenizer.ggml.token_type",
        ARRAY,
        &array(I32, (0..VOCAB).flat_map(|token| kind(token).to_le_bytes()).collect()),
    );
    (count, out)
}

fn make(path: &Path) -> Result<Value> {
    let tensors = tensors();
    let (count, metadata) = metadata();
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(count.to_le_bytes());
    header.extend(metadata);
    let mut offset = 0u64;
    for tensor in &tensors {
        let (name, dims, is_matrix) = tensor;
        string(&mut header, name);
        header.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| header.extend(dim.to_le_bytes()));
        header.extend(if *is_matrix { 8u32 } else { 0 }.to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += bytes(tensor).next_multiple_of(32);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    write(path, &header, &tensors)?;
    Ok(json!({"bytes": header.len() as u64 + offset}))
}

/// The first tensors of the same model, up to 2.5 GB, as bytes in a safetensors file: for who reads no GGUF.
fn make_safetensors(path: &Path) -> Result<Value> {
    let mut end = 0;
    let tensors: Vec<Tensor> = tensors()
        .into_iter()
        .take_while(|tensor| {
            end += bytes(tensor);
            end <= 2_500_000_000
        })
        .collect();
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for tensor in &tensors {
        let (begin, end) = (at, at + bytes(tensor));
        header.insert(tensor.0.clone(), json!({"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}));
        at = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
    write(path, &[&(header.len() as u64).to_le_bytes()[..], &header].concat(), &tensors)?;
    Ok(json!({"bytes": at}))
}

/// Random numbers of a size that keeps sums finite, each tensor up to the next 32 bytes.
fn write(path: &Path, header: &[u8], tensors: &[Tensor]) -> Result<()> {
    let part = path.with_extension("part");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&part)?);
    out.write_all(header)?;
    let mut block = vec![0u8; 34 << 15];
    let mut state = 1u64;
    for tensor in tensors {
        let mut left = bytes(tensor);
        let mut padding = left.next_multiple_of(32) - left;
        while left > 0 {
            for word in block.as_chunks_mut::<8>().0 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *word = (state ^ (state >> 29)).to_le_bytes();
            }
            match tensor.2 {
                // A scale of 2^-13 before each 32 numbers.
                true => block.chunks_mut(34).for_each(|block| block[..2].copy_from_slice(&[0, 0x08])),
                false => block.as_chunks_mut::<4>().0.iter_mut().for_each(|number| *number = 1f32.to_le_bytes()),
            }
            let piece = left.min(block.len() as u64);
            out.write_all(&block[..piece as usize])?;
            left -= piece;
        }
        while padding > 0 {
            out.write_all(&[0])?;
            padding -= 1;
        }
    }
    out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    std::fs::rename(part, path)?;
    Ok(())
}

fn ingest(file: &Path, store: &Path) -> Result<Value> {
    let store = Store::open(store)?;
    let checkpoint = Checkpoint::open(file, None)?;
    let begun = Instant::now();
    let manifest = store.ingest(&checkpoint, "bench", &AsStored, &mut |_| {})?;
    Ok(json!({"s": begun.elapsed().as_secs_f64(), "bytes": manifest.bytes(), "objects": manifest.objects.len()}))
}

fn load_model(store: &Path, number: usize, segments: &Path, options: &[&str]) -> Result<Value> {
    let value = |name: &str| options.iter().find_map(|option| option.strip_prefix(name));
    let defaults = LoadOptions::default();
    let chosen = LoadOptions {
        io_uring: !options.contains(&"waiting"),
        direct: !options.contains(&"cached"),
        threads: value("threads=").map_or(Ok(defaults.threads), str::parse)?,
        queue_depth: value("depth=").map_or(Ok(defaults.queue_depth), str::parse)?,
        ..defaults
    };
    let store = Store::open(store)?;
    let segments = Segments::open(segments)?;
    let all = store.manifests()?;
    let found = all.get(number).ok_or("no model of that number")?;
    if options.contains(&"fresh") {
        found.objects.iter().try_for_each(|object| segments.remove(object).map(drop))?;
    }
    let begun = Instant::now();
    let manifest = store.manifest(&found.revision, &found.layout)?.ok_or("the model is gone")?;
    let loaded = load(&store, &manifest, &segments, chosen)?;
    let ms = begun.elapsed().as_secs_f64() * 1e3;
    Ok(json!({
        "ms": ms, "read_bytes": loaded.facts.read_bytes, "adopted_bytes": loaded.facts.adopted_bytes,
        "io_uring": loaded.facts.io_uring, "direct": loaded.facts.direct, "refused": loaded.facts.refused,
    }))
}
