//! The beginning of any request at all: reading it returns, finds no value longer than a bounded one, and how the
//! bytes are cut into segments changes nothing.

#![no_main]

use controller_witness::body::Request;
use libfuzzer_sys::fuzz_target;
use std::hash::DefaultHasher;

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Request {
    let mut request = Request::new(DefaultHasher::new());
    for piece in pieces {
        assert!(request.push(piece) == piece.len() || request.whole_bytes().is_some());
    }
    request
}

fuzz_target!(|data: &[u8]| {
    let Some((size, text)) = data.split_first() else { return };
    let (whole, cut) = (read([text]), read(text.chunks(usize::from(*size).max(1))));
    assert_eq!(whole.facts(), cut.facts());
    assert_eq!((whole.fingerprint(), whole.done()), (cut.fingerprint(), cut.done()));
    assert_eq!(whole.announced_bytes(), cut.announced_bytes());
    assert!(whole.facts().and_then(|facts| facts.model).is_none_or(|model| model.len() <= 256));
});
