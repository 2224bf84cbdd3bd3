//! Any bytes at all as a safetensors file: opening returns, and what opens lies within the bytes.
#![no_main]

use engine_store::Safetensors;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(opened) = Safetensors::from_bytes(data.to_vec()) else { return };
    for tensor in opened.tensors() {
        let bits = tensor.shape.iter().product::<u64>() * tensor.dtype.bitsize() as u64;
        assert_eq!(bits, tensor.bytes.len() as u64 * 8);
        if let Ok(copied) = opened.tensor_data(tensor.name) {
            assert_eq!(&*copied, tensor.bytes);
        }
    }
});
