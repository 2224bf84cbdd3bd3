//! Any bytes at all as config.json, beside the weights of a small llama: opening the folder returns, and what opens
//! gives every tensor that it names.
#![no_main]

use engine_store::{Checkpoint, Quantisation};
use std::{path::PathBuf, sync::LazyLock};

/// A folder in memory-backed storage, where there is some, whose configuration each run replaces.
static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| {
    let shared = PathBuf::from("/dev/shm");
    let base = if shared.is_dir() { shared } else { std::env::temp_dir() };
    let folder = base.join(format!("foreshock-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    std::fs::write(folder.join("tokenizer.json"), "{}").expect("a file");
    std::fs::write(folder.join("model.safetensors"), weights()).expect("a file");
    folder
});

/// One layer: width 32, two heads of 16, one KV head, feed-forward 64, vocabulary of 4; all zeros.
fn weights() -> Vec<u8> {
    let shapes: [(&str, u64, u64); 11] = [
        ("embed_tokens", 4, 32),
        ("norm", 32, 1),
        ("layers.0.input_layernorm", 32, 1),
        ("layers.0.self_attn.q_proj", 32, 32),
        ("layers.0.self_attn.k_proj", 16, 32),
        ("layers.0.self_attn.v_proj", 16, 32),
        ("layers.0.self_attn.o_proj", 32, 32),
        ("layers.0.post_attention_layernorm", 32, 1),
        ("layers.0.mlp.gate_proj", 64, 32),
        ("layers.0.mlp.up_proj", 64, 32),
        ("layers.0.mlp.down_proj", 32, 64),
    ];
    let (mut header, mut end) = (Vec::new(), 0);
    for (name, rows, cols) in shapes {
        let shape = if cols == 1 { format!("[{rows}]") } else { format!("[{rows},{cols}]") };
        let start = end;
        end += 2 * rows * cols;
        header.push(format!(
            r#""model.{name}.weight":{{"dtype":"BF16","shape":{shape},"data_offsets":[{start},{end}]}}"#
        ));
    }
    let header = format!("{{{}}}", header.join(","));
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; end as usize]].concat()
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    std::fs::write(FOLDER.join("config.json"), data).expect("a file");
    for quantisation in [None, Some(Quantisation::Q4_0)] {
        let Ok(checkpoint) = Checkpoint::open(&*FOLDER, quantisation) else { return };
        checkpoint.validate().expect("opening has checked it");
        for tensor in checkpoint.tensors() {
            let found = checkpoint.tensor_data(tensor.name).expect("a tensor that is named");
            assert_eq!((found.kind(), found.dims(), found.len() as u64), (tensor.kind, tensor.dims, tensor.bytes()));
        }
    }
});
