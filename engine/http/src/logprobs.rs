//! Log-probabilities on their way to the client: they leave together with the text of their tokens.
//!
//! Text may be held back (half a character, the beginning of a stop string), and what a stop string cuts off is never
//! shown. So an entry waits until its token's text is out, and is dropped with text that never comes: the entries
//! that a client has are those of the text that it has, however the stream was cut.

use engine_text::TextModel;
use engine_wire::TokenId;
use engine_wire::hop::TokenLogprobs;
use engine_wire::openai::{ChatLogprobs, ChatTokenLogprob, CompletionLogprobs, LogprobMap, TopLogprob};
use std::collections::VecDeque;
use std::sync::Arc;

/// Log-probabilities of one token of an output, with the bytes that the tokens stand for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Score {
    bytes: Vec<u8>,
    /// None for the first token of a prompt.
    logprob: Option<f32>,
    top: Vec<(Vec<u8>, f32)>,
    /// Where its text begins in the output's text, characters.
    text_offset: u32,
}

/// An entry whose text is not out yet. Places are bytes of the output's text.
struct Waiting {
    start: usize,
    end: usize,
    score: Score,
}

/// Keeps the entries of one output in step with its text.
pub(crate) struct Scores {
    text: Arc<TextModel>,
    waiting: VecDeque<Waiting>,
    produced_bytes: usize,
    produced_chars: usize,
    shown_bytes: usize,
}

impl Scores {
    pub fn new(text: Arc<TextModel>) -> Self {
        Self { text, waiting: VecDeque::new(), produced_bytes: 0, produced_chars: 0, shown_bytes: 0 }
    }

    /// A token came out of the detokenizer with this text, which may be empty.
    pub fn produced(&mut self, token: TokenId, logprobs: Option<TokenLogprobs>, text: &str) {
        let start = self.produced_bytes;
        self.produced_bytes += text.len();
        if let Some(TokenLogprobs { logprob, top }) = logprobs {
            self.wait(token, start, Some(logprob), top);
        }
        self.produced_chars += text.chars().count();
    }

    /// The same for the first token of a prompt, which has an entry without a number.
    pub fn begun(&mut self, token: TokenId, text: &str) {
        let start = self.produced_bytes;
        self.produced_bytes += text.len();
        self.wait(token, start, None, Vec::new());
        self.produced_chars += text.chars().count();
    }

    fn wait(&mut self, token: TokenId, start: usize, logprob: Option<f32>, top: Vec<(TokenId, f32)>) {
        let bytes = |id| self.text.token_bytes(id).to_vec();
        let score = Score {
            bytes: bytes(token),
            logprob,
            top: top.into_iter().map(|(id, logprob)| (bytes(id), logprob)).collect(),
            text_offset: u32::try_from(self.produced_chars).unwrap_or(u32::MAX),
        };
        self.waiting.push_back(Waiting { start, end: self.produced_bytes, score });
    }

    /// So many more bytes of text are out: gives the entries of the tokens that are wholly out.
    pub fn shown(&mut self, bytes: usize, out: &mut Vec<Score>) {
        self.shown_bytes += bytes;
        while self.waiting.front().is_some_and(|entry| entry.end <= self.shown_bytes) {
            out.extend(self.waiting.pop_front().map(|entry| entry.score));
        }
    }

    /// No more text comes: gives the entries of the tokens that are out in part, and forgets the rest.
    pub fn stopped(&mut self, out: &mut Vec<Score>) {
        let shown = self.shown_bytes;
        out.extend(self.waiting.drain(..).filter(|entry| entry.start < shown).map(|entry| entry.score));
    }
}

/// The chat API's shape; none for no entries.
pub(crate) fn chat_logprobs(scores: &[Score]) -> Option<ChatLogprobs> {
    let alternative = |(bytes, logprob): &(Vec<u8>, f32)| TopLogprob {
        token: token_text(bytes),
        logprob: *logprob,
        bytes: bytes.clone(),
    };
    let entry = |score: &Score| ChatTokenLogprob {
        token: token_text(&score.bytes),
        // Only a prompt's first token has none, and chats do not show prompts.
        logprob: score.logprob.unwrap_or(0.0),
        bytes: score.bytes.clone(),
        top_logprobs: score.top.iter().map(alternative).collect(),
    };
    (!scores.is_empty()).then(|| ChatLogprobs { content: scores.iter().map(entry).collect(), refusal: None })
}

/// The completions API's shape; none for no entries.
pub(crate) fn completion_logprobs(scores: &[Score]) -> Option<CompletionLogprobs> {
    if scores.is_empty() {
        return None;
    }
    let mut out = CompletionLogprobs::default();
    for score in scores {
        let token = token_text(&score.bytes);
        let mut top: Vec<(String, f32)> = Vec::with_capacity(score.top.len() + 1);
        let chosen = score.logprob.map(|logprob| (token.clone(), logprob));
        for (text, logprob) in score.top.iter().map(|(bytes, logprob)| (token_text(bytes), *logprob)).chain(chosen) {
            // Keys of a JSON object are unique: of tokens with the same text the likeliest stands for all.
            if top.iter().all(|(known, _)| *known != text) {
                top.push((text, logprob));
            }
        }
        out.text_offset.push(score.text_offset);
        out.token_logprobs.push(score.logprob);
        out.tokens.push(token);
        out.top_logprobs.push(score.logprob.map(|_| LogprobMap(top)));
    }
    Some(out)
}

/// A token as text; one that is not whole characters is written out byte by byte, as OpenAI's API does.
pub(crate) fn token_text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| format!("{text}\\x{byte:02x}")),
    }
}
