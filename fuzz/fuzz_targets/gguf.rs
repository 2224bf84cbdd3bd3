//! Any bytes at all: opening, inspecting and validating a checkpoint returns, and never panics.
#![no_main]

use engine_store::{Gguf, Value};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(gguf) = Gguf::from_bytes(data.to_vec()) else { return };
    let _ = (gguf.inspect(), gguf.validate());
    for key in gguf.keys() {
        if let Some(Value::Array(array)) = gguf.value(key) {
            let strings = array.strings().map_or(0, |strings| strings.count());
            assert!(strings == 0 || strings == array.len());
            assert!(array.scalars().count() <= array.len());
        }
    }
    for tensor in gguf.tensors() {
        assert_eq!(tensor.kind.bytes(tensor.elements()), Some(tensor.bytes.len() as u64));
    }
});
