//! SentencePiece's BPE (Kudo and Richardson 2018; sentencepiece's bpe_model.cc, llama.cpp's `llm_tokenizer_spm`):
//! of all neighbours whose concatenation is in the vocabulary, those with the best score merge first, the leftmost
//! of equals. What the vocabulary lacks becomes bytes.
//!
//! A space is written as U+2581 in the vocabulary. Control and user-defined tokens are cut out of the text first,
//! the longest at each place.

use crate::TextError;
use crate::parts::TokenKind;
use engine_wire::TokenId;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

/// How a vocabulary writes a space.
pub const SPACE: char = '\u{2581}';

pub struct SentencePiece {
    /// Tokens that merging may make.
    tokens: HashMap<String, (TokenId, f32)>,
    special: Special,
    /// Token of each byte, or the unknown token; None when there is neither.
    bytes: [Option<TokenId>; 256],
    add_space_prefix: bool,
}

/// Tokens that are matched whole in raw text.
struct Special {
    ids: HashMap<String, TokenId>,
    /// By first byte: the distinct lengths, longest first.
    lengths: Vec<Vec<usize>>,
}

impl SentencePiece {
    /// `kinds` and `scores` have one entry per token.
    pub fn new(
        vocabulary: Vec<String>,
        kinds: &[TokenKind],
        scores: &[f32],
        unknown: Option<TokenId>,
        add_space_prefix: bool,
    ) -> Self {
        let mut tokens = HashMap::with_capacity(vocabulary.len());
        let mut special = Special { ids: HashMap::new(), lengths: vec![Vec::new(); 256] };
        let mut bytes = [unknown; 256];
        for (id, ((token, kind), score)) in vocabulary.into_iter().zip(kinds).zip(scores).enumerate() {
            let id = id as TokenId;
            match kind {
                TokenKind::Normal => {
                    tokens.insert(token, (id, *score));
                }
                TokenKind::Byte => {
                    if let Some(byte) = byte_of(&token) {
                        bytes[usize::from(byte)] = Some(id);
                    }
                }
                TokenKind::Control | TokenKind::UserDefined => special.add(token, id),
            }
        }
        special.lengths.iter_mut().for_each(|lengths| lengths.sort_unstable_by(|a, b| b.cmp(a)));
        Self { tokens, special, bytes, add_space_prefix }
    }

    /// Tokens of a text, without begin and end tokens.
    pub fn encode(&self, text: &str) -> Result<Vec<TokenId>, TextError> {
        if u32::try_from(text.len()).is_err() {
            return Err(TextError::Encode { message: format!("{} bytes are too many", text.len()) });
        }
        let mut ids = Vec::with_capacity(text.len() / 3);
        let (mut plain_from, mut at) = (0, 0);
        // As llama.cpp does it: the space goes before text that begins the input or follows a special token.
        while at < text.len() {
            let Some((id, len)) = self.special.at(text, at) else {
                at += 1;
                continue;
            };
            self.encode_plain(&text[plain_from..at], &mut ids);
            ids.push(id);
            at += len;
            plain_from = at;
        }
        self.encode_plain(&text[plain_from..], &mut ids);
        Ok(ids)
    }

    fn encode_plain(&self, text: &str, ids: &mut Vec<TokenId>) {
        if text.is_empty() {
            return;
        }
        let mut escaped = String::with_capacity(text.len() + text.len() / 2);
        if self.add_space_prefix {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|character| if character == ' ' { SPACE } else { character }));
        for piece in self.merge(&escaped) {
            match self.tokens.get(piece) {
                Some((id, _)) => ids.push(*id),
                None => ids.extend(piece.bytes().filter_map(|byte| self.bytes[usize::from(byte)])),
            }
        }
    }

    /// The pieces of `text` when no merge is left.
    fn merge<'a>(&self, text: &'a str) -> impl Iterator<Item = &'a str> {
        let mut pieces = Pieces::new(text);
        let mut heap = BinaryHeap::new();
        for left in 1..pieces.list.len() {
            heap.extend(self.candidate(&pieces, left - 1, left));
        }
        while let Some(best) = heap.pop() {
            let Some(right) = pieces.apply(&best) else { continue };
            let (before, after) = (pieces.list[best.left].before, right);
            if let Some(before) = before {
                heap.extend(self.candidate(&pieces, before, best.left));
            }
            if let Some(after) = after {
                heap.extend(self.candidate(&pieces, best.left, after));
            }
        }
        pieces.list.into_iter().filter(|piece| piece.len > 0).map(|piece| &text[piece.start..piece.start + piece.len])
    }

    fn candidate(&self, pieces: &Pieces<'_>, left: usize, right: usize) -> Option<Candidate> {
        let len = pieces.list[left].len + pieces.list[right].len;
        let start = pieces.list[left].start;
        let (_, score) = self.tokens.get(&pieces.text[start..start + len])?;
        Some(Candidate { score: *score, left, right, len })
    }
}

/// The byte of a token `<0xNN>`.
pub fn byte_of(token: &str) -> Option<u8> {
    u8::from_str_radix(token.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}

impl Special {
    fn add(&mut self, token: String, id: TokenId) {
        let Some(first) = token.bytes().next() else { return };
        let lengths = &mut self.lengths[usize::from(first)];
        if !lengths.contains(&token.len()) {
            lengths.push(token.len());
        }
        self.ids.insert(token, id);
    }

    /// The longest that stands at byte `at`, and its length.
    fn at(&self, text: &str, at: usize) -> Option<(TokenId, usize)> {
        let lengths = &self.lengths[usize::from(text.as_bytes()[at])];
        lengths.iter().find_map(|len| Some((*self.ids.get(text.get(at..at + len)?)?, *len)))
    }
}

struct Piece {
    start: usize,
    /// Bytes; zero once merged into the piece before it.
    len: usize,
    before: Option<usize>,
    after: Option<usize>,
}

/// The text cut into pieces, one per character at first, as a linked list.
struct Pieces<'a> {
    text: &'a str,
    list: Vec<Piece>,
}

impl<'a> Pieces<'a> {
    fn new(text: &'a str) -> Self {
        let count = text.chars().count();
        let list = text.char_indices().enumerate().map(|(index, (start, character))| Piece {
            start,
            len: character.len_utf8(),
            before: index.checked_sub(1),
            after: Some(index + 1).filter(|after| *after < count),
        });
        Self { text, list: list.collect() }
    }

    /// Merges unless one of the two has changed since; returns the piece that then follows, if any.
    fn apply(&mut self, merge: &Candidate) -> Option<Option<usize>> {
        let (left, right) = (&self.list[merge.left], &self.list[merge.right]);
        if left.len == 0 || right.len == 0 || left.len + right.len != merge.len {
            return None;
        }
        let after = right.after;
        self.list[merge.right].len = 0;
        self.list[merge.left].len = merge.len;
        self.list[merge.left].after = after;
        if let Some(after) = after {
            self.list[after].before = Some(merge.left);
        }
        Some(after)
    }
}

struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}
