//! The hop's parser reads what a dying or foreign process sends. It must never panic, and how the bytes are cut
//! into reads must change neither the items nor the error.
#![no_main]

use controller_gateway::sse::{HopItem, HopParser, HopSyntaxError};
use libfuzzer_sys::fuzz_target;

fn parse<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> (Vec<HopItem>, Option<HopSyntaxError>) {
    let (mut parser, mut items) = (HopParser::default(), Vec::new());
    let error = chunks.into_iter().find_map(|chunk| parser.push(chunk, &mut items).err());
    (items, error)
}

fuzz_target!(|data: &[u8]| {
    let Some((size, text)) = data.split_first() else { return };
    let whole = parse([text]);
    let pieces = parse(text.chunks(usize::from(*size).max(1)));
    assert_eq!(whole, pieces);
});
