//! Any bytes at all as a manifest of the store, with a checksum that is right: reading returns, what is read lies within
//! its objects, and it is written as it was read.
#![no_main]

use engine_store::{Checksum, Manifest};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = Manifest::parse(data);
    // Without it, no change would ever get past the checksum.
    let sealed = [data, b"\n", Checksum::of(data).to_string().as_bytes(), b"\n"].concat();
    let Ok(manifest) = Manifest::parse(&sealed) else { return };
    for tensor in &manifest.tensors {
        assert!(tensor.offset + tensor.bytes <= manifest.objects[tensor.object].bytes());
        assert!(tensor.bytes >= tensor.kind.bytes(tensor.dims.iter().product()).unwrap_or(0));
    }
    assert_eq!(Manifest::parse(manifest.to_text().as_bytes()).as_ref(), Ok(&manifest));
});
