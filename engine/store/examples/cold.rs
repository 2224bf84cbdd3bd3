//! The store from a command line, for `cargo xtask bench load`: makes a large checkpoint, ingests it, loads it. Each
//! command answers in one line of JSON.
//!
//!     cold make FILE              a 7B llama in Q8_0 with random weights, 7.2 GB
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
        ["ingest", file, store] => ingest(Path::new(file), Path::new(store))?,
        ["load", store, number, segments, ref options @ ..] => {
            load_model(Path::new(store), number.parse()?, Path::new(segments), options)?
        }
        _ => return Err("usage: cold make FILE | ingest FILE STORE | load STORE NUMBER SEGMENTS [OPTION]...".into()),
    };
    println!("{said}");
    Ok(())
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Llama 2 7B's configuration.
fn make(path: &Path) -> Result<Value> {
    const F32: u32 = 0;
    const Q8_0: u32 = 8;
    let (width, ffn, vocab, layers) = (4096u64, 11_008u64, 32_000u64, 32u64);
    let mut tensors = vec![("token_embd.weight".to_owned(), vec![width, vocab], Q8_0)];
    for layer in 0..layers {
        let mut add = |part: &str, dims: &[u64], kind| {
            tensors.push((format!("blk.{layer}.{part}.weight"), dims.to_vec(), kind));
        };
        add("attn_norm", &[width], F32);
        ["attn_q", "attn_k", "attn_v", "attn_output"].iter().for_each(|part| add(part, &[width, width], Q8_0));
        add("ffn_norm", &[width], F32);
        ["ffn_gate", "ffn_up"].iter().for_each(|part| add(part, &[width, ffn], Q8_0));
        add("ffn_down", &[ffn, width], Q8_0);
    }
    tensors.push(("output_norm.weight".to_owned(), vec![width], F32));
    tensors.push(("output.weight".to_owned(), vec![width, vocab], Q8_0));
    let bytes = |dims: &[u64], kind| {
        let elements: u64 = dims.iter().product();
        if kind == F32 { 4 * elements } else { elements / 32 * 34 }
    };
    let mut header = b"GGUF\x03\0\0\0".to_vec();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend(0u64.to_le_bytes());
    let mut offset = 0u64;
    for (name, dims, kind) in &tensors {
        string(&mut header, name);
        header.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| header.extend(dim.to_le_bytes()));
        header.extend(kind.to_le_bytes());
        header.extend(offset.to_le_bytes());
        offset += bytes(dims, *kind).next_multiple_of(32);
    }
    header.resize(header.len().next_multiple_of(32), 0);
    let part = path.with_extension("part");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&part)?);
    out.write_all(&header)?;
    let mut block = vec![0u8; 1 << 20];
    let mut state = 1u64;
    let mut left = offset;
    while left > 0 {
        for word in block.as_chunks_mut::<8>().0 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *word = (state ^ (state >> 29)).to_le_bytes();
        }
        let piece = left.min(block.len() as u64);
        out.write_all(&block[..piece as usize])?;
        left -= piece;
    }
    out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
    std::fs::rename(part, path)?;
    Ok(json!({"bytes": header.len() as u64 + offset}))
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
