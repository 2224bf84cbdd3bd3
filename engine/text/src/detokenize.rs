//! Tokens to text, one token at a time, never half a character.
//!
//! A byte-level token may end inside a UTF-8 sequence. Such a tail is held back until the bytes that complete it
//! arrive; a sequence that cannot become valid is replaced by U+FFFD as `String::from_utf8_lossy` does, which makes
//! the text independent of where the stream is cut.

use engine_wire::TokenId;
use std::sync::Arc;

/// Bytes of every vocabulary entry, in one allocation.
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// End of entry `id` in `bytes`; it begins where the one before it ends.
    ends: Vec<usize>,
    special: Vec<bool>,
}

impl Pieces {
    pub fn with_capacity(entries: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(entries * 8),
            ends: Vec::with_capacity(entries),
            special: Vec::with_capacity(entries),
        }
    }

    /// Appends the next entry, whose bytes `write` appends.
    pub fn push(&mut self, special: bool, write: impl FnOnce(&mut Vec<u8>)) {
        write(&mut self.bytes);
        self.ends.push(self.bytes.len());
        self.special.push(special);
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of the longest entry.
    pub fn longest(&self) -> usize {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| end - start).max().unwrap_or(0)
    }

    /// Ids outside the vocabulary are no text either.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.special.get(id as usize).copied().unwrap_or(true)
    }

    pub fn bytes(&self, id: TokenId, skip_special: bool) -> &[u8] {
        let index = id as usize;
        match self.special.get(index) {
            None => &[],
            Some(true) if skip_special => &[],
            Some(_) => {
                let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
                &self.bytes[start..self.ends[index]]
            }
        }
    }
}

/// Text of one output stream.
pub struct Detokenizer {
    pieces: Arc<Pieces>,
    skip_special: bool,
    /// Text of special tokens that are not left out with the others.
    shown: &'static str,
    /// Start of a character that is not complete yet: at most 3 bytes between calls.
    held: Vec<u8>,
}

impl Detokenizer {
    pub(crate) fn new(pieces: Arc<Pieces>, skip_special: bool) -> Self {
        Self { pieces, skip_special, shown: "", held: Vec::new() }
    }

    /// Shows the special tokens of this text, whatever becomes of others: text is all that who reads it goes by.
    pub fn showing(self, text: &'static str) -> Self {
        Self { shown: text, ..self }
    }

    /// Appends what this token completes to `out`.
    pub fn push(&mut self, id: TokenId, out: &mut String) {
        let bytes = self.pieces.bytes(id, false);
        let skip = self.skip_special && (self.shown.is_empty() || bytes != self.shown.as_bytes());
        self.held.extend_from_slice(self.pieces.bytes(id, skip));
        let kept = drain_complete(&self.held, out);
        self.held.drain(..self.held.len() - kept);
    }

    /// Appends a replacement character for a tail that will not be completed.
    pub fn finish(&mut self, out: &mut String) {
        if !self.held.is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
            self.held.clear();
        }
    }
}

/// Appends the text in `bytes` but for an incomplete last character; returns how many bytes that has.
fn drain_complete(mut bytes: &[u8], out: &mut String) -> usize {
    loop {
        let error = match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                return 0;
            }
            Err(error) => error,
        };
        let (valid, rest) = bytes.split_at(error.valid_up_to());
        out.push_str(&String::from_utf8_lossy(valid));
        let Some(invalid) = error.error_len() else { return rest.len() };
        out.push(char::REPLACEMENT_CHARACTER);
        bytes = &rest[invalid..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(entries: &[Vec<u8>]) -> Arc<Pieces> {
        let mut pieces = Pieces::with_capacity(entries.len());
        for entry in entries {
            pieces.push(false, |out| out.extend_from_slice(entry));
        }
        Arc::new(pieces)
    }

    fn stream(entries: &[Vec<u8>]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(pieces(entries), false);
        let mut texts = Vec::new();
        for id in 0..entries.len() {
            let mut text = String::new();
            detokenizer.push(id as TokenId, &mut text);
            texts.push(text);
        }
        let mut text = String::new();
        detokenizer.finish(&mut text);
        texts.push(text);
        texts
    }

    #[test]
    fn half_a_character_is_held_back() {
        let euro = "€".as_bytes();
        assert_eq!(stream(&[euro[..1].to_vec(), euro[1..].to_vec()]), ["", "€", ""]);
        assert_eq!(stream(&[euro[..2].to_vec(), b"a".to_vec()]), ["", "\u{FFFD}a", ""]);
        assert_eq!(stream(&[euro[..2].to_vec()]), ["", "\u{FFFD}"]);
        assert_eq!(stream(&[vec![0xFF], b"b".to_vec()]), ["\u{FFFD}", "b", ""]);
    }

    #[test]
    fn special_tokens_are_skipped_on_request_and_unknown_ids_have_no_text() {
        let mut pieces = Pieces::with_capacity(2);
        pieces.push(false, |out| out.push(b'a'));
        pieces.push(true, |out| out.extend_from_slice(b"<s>"));
        let pieces = Arc::new(pieces);
        for (skip, expected) in [(true, "aa"), (false, "a<s>a")] {
            let (mut detokenizer, mut text) = (Detokenizer::new(pieces.clone(), skip), String::new());
            for id in [0, 1, 7, u32::MAX, 0] {
                detokenizer.push(id, &mut text);
            }
            assert_eq!(text, expected);
        }
    }

    proptest! {
        /// Wherever a byte string is cut, valid or not, its pieces give what the whole gives.
        #[test]
        fn streamed_text_equals_whole_text(
            chunks in prop::collection::vec(prop::collection::vec(prop_oneof![any::<u8>(), 0x80..0xC0u8, 0xE0..0xF5u8], 0..5), 0..12)
        ) {
            let whole = String::from_utf8_lossy(&chunks.concat()).into_owned();
            prop_assert_eq!(stream(&chunks).concat(), whole);
        }
    }
}
