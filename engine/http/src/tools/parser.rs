//! From a model's text to content and calls, while it comes.
//!
//! Every decision is made on the text alone and at the first byte that allows it, so the result does not depend on how
//! the text was cut: a stream's deltas, put together, are the whole answer. Text that might yet be the beginning of a
//! call is held back; what turns out to be none becomes content, as it was. A call goes out from the moment its
//! arguments begin; should they break off, a stream has that much of the call (as OpenAI's has at `max_tokens`), while a
//! whole answer shows all of its text as content.

use super::CallDelta;
use super::head::{ARGUMENTS, Head, read};
use super::json::{Scanner, Step};
use engine_text::ToolFormat;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Longest call in an unusual order, which is held back as a whole, bytes.
const UNUSUAL_MAX_BYTES: usize = 16 << 10;

/// How an output's calls are read.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub format: ToolFormat,
    /// Functions that exist: nothing else is a call.
    pub names: Arc<[String]>,
    /// Whether the output ends after one call.
    pub single: bool,
    /// Whether deltas go out as they come, so that none can be taken back.
    pub streamed: bool,
    /// Makes the ids of this output's calls unlike those of others.
    pub salt: u64,
}

/// Reads one output.
pub(crate) struct Parser {
    reading: Reading,
    /// Text that nothing was decided about.
    held: String,
    state: State,
    /// Calls begun.
    begun: u32,
    /// Calls whose arguments are whole.
    complete: u32,
}

/// Where in the text the parser is. Places are bytes of `held`.
enum State {
    /// Outside of calls. `quiet` until something other than blanks came since the beginning or the last call.
    Text { quiet: bool },
    /// Between an opening, which ends at `opened`, and the object of a call; or behind a call.
    Between { opened: Option<usize>, bracket: bool },
    /// In an object that may be a call and begins at `start`; of what is held the first `opened` bytes are its opening.
    Object { start: usize, opened: usize, bracket: bool, unusual: Option<(Scanner, usize)> },
    /// In the arguments of a call; `raw` is the call's text before what is held, kept for whole answers.
    Arguments { scanner: Scanner, raw: String, bracket: bool },
    /// Behind the arguments, in what is left of the object.
    Tail { scanner: Scanner, at: usize, bracket: bool },
    /// The one call that was allowed is over.
    Done,
}

/// Whether the text at hand allows another step.
enum Next {
    Again,
    Wait,
}

impl Parser {
    pub fn new(reading: Reading) -> Self {
        Self { reading, held: String::new(), state: State::Text { quiet: true }, begun: 0, complete: 0 }
    }

    /// Whether the output is to end here.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// Whether there is a whole call.
    pub fn has_called(&self) -> bool {
        self.complete > 0
    }

    /// Takes the next text.
    pub fn push(&mut self, text: &str, content: &mut String, calls: &mut Vec<CallDelta>) {
        self.held.push_str(text);
        while let Next::Again = self.step(content, calls) {}
    }

    /// No more text comes: what is held back is decided.
    pub fn finish(&mut self, content: &mut String, calls: &mut Vec<CallDelta>) {
        loop {
            match std::mem::replace(&mut self.state, State::Done) {
                State::Done => return,
                State::Text { .. } | State::Between { opened: None, .. } => {
                    let only_blanks = self.held.trim_ascii().is_empty();
                    if self.complete == 0 || !only_blanks {
                        content.push_str(&self.held);
                    }
                    self.held.clear();
                    return;
                }
                State::Between { opened: Some(opened), .. } | State::Object { opened, .. } => {
                    self.no_call(opened, content);
                }
                State::Arguments { raw, .. } => self.broken(raw, content, calls),
                State::Tail { bracket, .. } => self.state = State::Between { opened: None, bracket },
            }
            while let Next::Again = self.step(content, calls) {}
        }
    }

    fn step(&mut self, content: &mut String, calls: &mut Vec<CallDelta>) -> Next {
        match std::mem::replace(&mut self.state, State::Done) {
            State::Done => {
                self.held.clear();
                Next::Wait
            }
            State::Text { quiet } => self.text(quiet, content),
            State::Between { opened, bracket } => self.between(opened, bracket, content),
            State::Object { start, opened, bracket, unusual: None } => {
                self.object(start, opened, bracket, content, calls)
            }
            State::Object { start, opened, bracket, unusual: Some(unusual) } => {
                self.unusual((start, opened, bracket), unusual, content, calls)
            }
            State::Arguments { scanner, raw, bracket } => self.arguments(scanner, raw, bracket, content, calls),
            State::Tail { scanner, at, bracket } => self.tail(scanner, at, bracket),
        }
    }

    fn text(&mut self, quiet: bool, content: &mut String) -> Next {
        let opening = self.reading.format.opening();
        let blanks = self.held.len() - self.held.trim_ascii_start().len();
        let may_be_bare = quiet && self.begun == 0 && self.reading.format.may_be_bare();
        if may_be_bare && self.held[blanks..].starts_with('{') {
            self.state = State::Object { start: blanks, opened: blanks + 1, bracket: false, unusual: None };
            return Next::Again;
        }
        let (end, found) = match self.held.find(opening) {
            Some(at) => (at, true),
            None => (self.held.len() - possible(&self.held, opening), false),
        };
        // Blanks before a call are no content, and before text they are.
        let keep = quiet && end <= blanks;
        if !keep {
            content.extend(self.held.drain(..end));
        }
        let end = if keep { end } else { 0 };
        if found {
            self.state = State::Between { opened: Some(end + opening.len()), bracket: false };
            return Next::Again;
        }
        self.state = State::Text { quiet: keep };
        Next::Wait
    }

    fn between(&mut self, opened: Option<usize>, mut bracket: bool, content: &mut String) -> Next {
        let mut at = opened.unwrap_or(0);
        loop {
            let rest = self.held[at..].trim_ascii_start();
            at = self.held.len() - rest.len();
            match (rest.bytes().next(), opened) {
                (None, _) => {
                    // A bracket of the opening is held, and found again.
                    self.state = State::Between { opened, bracket: bracket && opened.is_none() };
                    return Next::Wait;
                }
                (Some(b'{'), _) => {
                    let opened = opened.unwrap_or(at + 1);
                    self.state = State::Object { start: at, opened, bracket, unusual: None };
                    return Next::Again;
                }
                (Some(b'['), Some(_)) if !bracket => (bracket, at) = (true, at + 1),
                (Some(b',' | b';'), None) => at += 1,
                (Some(b']'), None) if bracket => {
                    self.held.drain(..=at);
                    (bracket, at) = (false, 0);
                }
                _ => break,
            }
        }
        let closing = self.reading.format.closing();
        let rest = &self.held[at..];
        match closing {
            Some(closing) if opened.is_none() && rest.starts_with(closing) => {
                self.held.drain(..at + closing.len());
                self.state = State::Text { quiet: true };
            }
            Some(closing) if opened.is_none() && closing.starts_with(rest) => {
                self.state = State::Between { opened, bracket };
                return Next::Wait;
            }
            _ => match opened {
                Some(opened) => self.no_call(opened, content),
                None => self.state = State::Text { quiet: true },
            },
        }
        Next::Again
    }

    fn object(
        &mut self,
        start: usize,
        opened: usize,
        bracket: bool,
        content: &mut String,
        calls: &mut Vec<CallDelta>,
    ) -> Next {
        let names = self.reading.names.clone();
        match read(&self.held[start..], |name| names.iter().any(|known| known == name)) {
            Head::More => {
                self.state = State::Object { start, opened, bracket, unusual: None };
                return Next::Wait;
            }
            Head::No => self.no_call(opened, content),
            Head::Unusual => {
                let unusual = Some((Scanner::new(), start));
                self.state = State::Object { start, opened, bracket, unusual };
            }
            Head::Call { name, arguments_at } => {
                let name = name.to_owned();
                let mut scanner = Scanner::new();
                let head = &self.held[start..start + arguments_at];
                if head.bytes().any(|byte| scanner.push(byte) != Step::More) {
                    self.no_call(opened, content);
                    return Next::Again;
                }
                self.begin(name, calls);
                let raw: String = self.held.drain(..start + arguments_at).collect();
                self.state = State::Arguments { scanner, raw, bracket };
            }
        }
        Next::Again
    }

    /// An object whose members come in another order, or whose arguments are no object.
    fn unusual(
        &mut self,
        (start, opened, bracket): (usize, usize, bool),
        (mut scanner, mut at): (Scanner, usize),
        content: &mut String,
        calls: &mut Vec<CallDelta>,
    ) -> Next {
        while let Some(byte) = self.held.as_bytes().get(at) {
            at += 1;
            match scanner.push(*byte) {
                Step::More if at - start < UNUSUAL_MAX_BYTES => {}
                Step::More | Step::Bad => {
                    self.no_call(opened, content);
                    return Next::Again;
                }
                Step::Complete => {
                    let call = call_of(&self.held[start..at]);
                    match call.filter(|(name, _)| self.reading.names.contains(name)) {
                        Some((name, arguments)) => {
                            let index = self.begin(name, calls);
                            calls.push(CallDelta::Arguments { index, text: arguments });
                            self.held.drain(..at);
                            self.completed(State::Between { opened: None, bracket });
                        }
                        None => self.no_call(opened, content),
                    }
                    return Next::Again;
                }
            }
        }
        self.state = State::Object { start, opened, bracket, unusual: Some((scanner, at)) };
        Next::Wait
    }

    fn arguments(
        &mut self,
        mut scanner: Scanner,
        mut raw: String,
        bracket: bool,
        content: &mut String,
        calls: &mut Vec<CallDelta>,
    ) -> Next {
        let mut taken = 0;
        let mut bad = false;
        let mut over = false;
        for byte in self.held.bytes() {
            match scanner.push(byte) {
                Step::Bad => bad = true,
                _ => taken += 1,
            }
            over = scanner.depth() == 1 && !bad;
            if bad || over {
                break;
            }
        }
        // What cannot stand there may be inside of a character, never of one that was taken in part: those stand in
        // strings, where every byte of them can.
        let text: String = self.held.drain(..taken).collect();
        if !self.reading.streamed {
            raw.push_str(&text);
        }
        if !text.is_empty() {
            more_arguments(self.begun - 1, text, calls);
        }
        if bad {
            self.broken(raw, content, calls);
            return Next::Again;
        }
        if over {
            self.completed(State::Tail { scanner, at: 0, bracket });
            return Next::Again;
        }
        self.state = State::Arguments { scanner, raw, bracket };
        Next::Wait
    }

    /// What follows the arguments inside of the object, an id for example, says nothing that is asked for.
    fn tail(&mut self, mut scanner: Scanner, mut at: usize, bracket: bool) -> Next {
        while let Some(byte) = self.held.as_bytes().get(at) {
            match scanner.push(*byte) {
                Step::More => at += 1,
                Step::Complete => {
                    self.held.drain(..=at);
                    self.state = State::Between { opened: None, bracket };
                    return Next::Again;
                }
                // Models forget the last bracket.
                Step::Bad => {
                    self.state = State::Between { opened: None, bracket };
                    return Next::Again;
                }
            }
        }
        self.state = State::Tail { scanner, at, bracket };
        Next::Wait
    }

    fn begin(&mut self, name: String, calls: &mut Vec<CallDelta>) -> u32 {
        let index = self.begun;
        self.begun += 1;
        let id = call_id(self.reading.format, self.reading.salt, index);
        calls.push(CallDelta::Begin { index, id, name });
        index
    }

    fn completed(&mut self, next: State) {
        self.complete += 1;
        self.state = if self.reading.single { State::Done } else { next };
    }

    /// What is held is no call: its opening is content, and the text behind that is read anew.
    fn no_call(&mut self, opened: usize, content: &mut String) {
        content.extend(self.held.drain(..opened));
        self.state = State::Text { quiet: false };
    }

    /// The arguments of a call cannot become whole.
    fn broken(&mut self, raw: String, content: &mut String, calls: &mut Vec<CallDelta>) {
        if !self.reading.streamed {
            content.push_str(&raw);
            calls.push(CallDelta::Withdrawn { index: self.begun - 1 });
        }
        self.state = State::Text { quiet: false };
    }
}

fn more_arguments(index: u32, more: String, calls: &mut Vec<CallDelta>) {
    match calls.last_mut() {
        Some(CallDelta::Arguments { index: same, text }) if *same == index => text.push_str(&more),
        _ => calls.push(CallDelta::Arguments { index, text: more }),
    }
}

/// Bytes at the end of a text that could begin a word which it does not contain.
fn possible(text: &str, word: &str) -> usize {
    let prefixes = word.char_indices().map(|(end, _)| &word[..end]);
    prefixes.rev().find(|prefix| text.ends_with(prefix)).map_or(0, str::len)
}

/// Name and arguments of an object in any order, and of OpenAI's own form.
fn call_of(text: &str) -> Option<(String, String)> {
    let object: Map<String, Value> = serde_json::from_str(text).ok()?;
    let object = object.get("function").and_then(Value::as_object).unwrap_or(&object);
    let name = object.get("name")?.as_str()?.to_owned();
    let arguments = match ARGUMENTS.iter().find_map(|key| object.get(*key)) {
        None | Some(Value::Null) => "{}".to_owned(),
        Some(value @ Value::Object(_)) => value.to_string(),
        Some(Value::String(text)) => {
            serde_json::from_str::<Map<String, Value>>(text).ok()?;
            text.clone()
        }
        Some(_) => return None,
    };
    Some((name, arguments))
}

/// `call_` and 24 letters and digits, as OpenAI has it. Mistral's templates want nine and nothing else.
fn call_id(format: ToolFormat, salt: u64, index: u32) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let (mut id, letters) = match format {
        ToolFormat::Mistral => (String::new(), 9),
        ToolFormat::Hermes | ToolFormat::Llama => ("call_".to_owned(), 24),
    };
    let mut number = 0u64;
    for letter in 0..letters {
        // A word of 64 bits has ten letters.
        if letter % 10 == 0 {
            number = engine_wire::sampling::choice_seed(salt, 1 + index * 3 + letter / 10);
        }
        id.push(char::from(ALPHABET[(number % 62) as usize]));
        number /= 62;
    }
    id
}

#[cfg(test)]
mod tests;
