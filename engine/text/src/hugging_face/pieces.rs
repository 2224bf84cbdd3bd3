//! The bytes of every entry of a `tokenizers` vocabulary. There are two alphabets: GPT-2's, one character per byte;
//! and SentencePiece's, text with U+2581 for a space and `<0xNN>` for single bytes.

use crate::byte_level::ByteDecoder;
use crate::detokenize::Pieces;
use crate::sentencepiece::{self, byte_of};
use engine_wire::TokenId;
use tokenizers::Tokenizer;

/// Entries 0 to `highest`; ids that the vocabulary leaves out have no bytes.
pub(super) fn build(tokenizer: &Tokenizer, is_byte_level: bool, highest: TokenId) -> Pieces {
    let decoder = ByteDecoder::new();
    let added = tokenizer.get_added_tokens_decoder();
    let mut pieces = Pieces::with_capacity(highest as usize + 1);
    for id in 0..=highest {
        if let Some(token) = added.get(&id) {
            pieces.push(token.special, |out| out.extend_from_slice(token.content.as_bytes()));
            continue;
        }
        let entry = tokenizer.id_to_token(id).unwrap_or_default();
        pieces.push(false, |out| match (is_byte_level, byte_of(&entry)) {
            (true, _) => decoder.append(&entry, out),
            (false, Some(byte)) => out.push(byte),
            (false, None) => out.extend_from_slice(entry.replace(sentencepiece::SPACE, " ").as_bytes()),
        });
    }
    pieces
}
