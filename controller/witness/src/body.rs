//! Reads the beginning of a request: its head, and from its body the values of a few top-level JSON keys.
//! It takes bytes as they come, cut anywhere, keeps no text but the values of those keys, and says "not seen"
//! of whatever lies beyond what it was given. Pure; memory is bounded by its few small buffers.

use serde::Serialize;
use std::hash::{DefaultHasher, Hasher};

/// Longest header name and value, and longest JSON key and value, that are looked at, bytes.
const WORD_LIMIT_BYTES: usize = 256;

/// What a request's body says at its top level; None where it was not seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BodyFacts {
    pub model: Option<String>,
    pub stream: Option<bool>,
    /// `max_tokens` or `max_completion_tokens`.
    pub max_tokens: Option<u32>,
    /// How many answers are asked for.
    pub n: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Line,
    Header,
    /// In a body of known length: bytes that are still to come.
    Length(u64),
    ChunkSize,
    Chunk(u64),
    /// After a chunk's bytes: its line end.
    ChunkEnd,
    /// After the last chunk.
    Trailer,
    Done,
    /// Not understood: nothing more is read.
    Lost,
    /// The first line is none of HTTP/1.
    Nonsense,
}

/// One request being read.
#[derive(Debug)]
pub struct Request {
    stage: Stage,
    line: Word,
    length: Option<u64>,
    chunked: bool,
    head_bytes: u64,
    read_bytes: u64,
    fingerprint: DefaultHasher,
    json: Json,
}

/// A bounded piece of text; what does not fit makes it unknown.
#[derive(Default)]
struct Word {
    bytes: Vec<u8>,
    cut: bool,
}

/// Never its text, which may be a client's.
impl std::fmt::Debug for Word {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

impl Word {
    fn push(&mut self, byte: u8) {
        if self.bytes.len() < WORD_LIMIT_BYTES {
            self.bytes.push(byte);
        } else {
            self.cut = true;
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.cut = false;
    }

    fn whole(&self) -> Option<&str> {
        std::str::from_utf8(&self.bytes).ok().filter(|_| !self.cut)
    }
}

impl Request {
    /// Begins with the request's first byte. `keyed` makes its fingerprint one that only this process can make.
    pub fn new(keyed: DefaultHasher) -> Self {
        Self {
            stage: Stage::Line,
            line: Word::default(),
            length: None,
            chunked: false,
            head_bytes: 0,
            read_bytes: 0,
            fingerprint: keyed,
            json: Json::default(),
        }
    }

    /// Takes the next bytes, and says how many of them: what comes after the request's last byte is another's.
    pub fn push(&mut self, text: &[u8]) -> usize {
        let mut taken = 0;
        while let Some(&byte) = text.get(taken).filter(|_| self.stage != Stage::Done) {
            self.byte(byte);
            taken += 1;
        }
        self.read_bytes += taken as u64;
        taken
    }

    /// Bytes of the whole request, if it was read to its end.
    pub fn whole_bytes(&self) -> Option<u64> {
        (self.stage == Stage::Done).then_some(self.read_bytes)
    }

    /// Whether nothing more can be learned.
    pub fn done(&self) -> bool {
        matches!(self.stage, Stage::Done | Stage::Lost | Stage::Nonsense)
    }

    /// Whether its first line is none of HTTP/1.
    pub fn is_nonsense(&self) -> bool {
        self.stage == Stage::Nonsense
    }

    /// What the body said so far; None before one began.
    pub fn facts(&self) -> Option<BodyFacts> {
        self.json.begun.then(|| self.json.facts.clone())
    }

    /// Keyed hash of method, path, the body's length where it is announced, and the bytes of the body that were
    /// seen: equal for a request that a client repeats.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint.finish()
    }

    /// Bytes of the whole request where its head announced them.
    pub fn announced_bytes(&self) -> Option<u64> {
        let in_head = matches!(self.stage, Stage::Line | Stage::Header | Stage::Lost | Stage::Nonsense);
        self.length.filter(|_| !in_head && !self.chunked).map(|length| self.head_bytes.saturating_add(length))
    }

    fn byte(&mut self, byte: u8) {
        match self.stage {
            Stage::Line | Stage::Header | Stage::ChunkSize | Stage::ChunkEnd | Stage::Trailer => {
                if matches!(self.stage, Stage::Line | Stage::Header) {
                    self.head_bytes += 1;
                }
                if byte != b'\n' {
                    return self.line.push(byte);
                }
                let line = std::mem::take(&mut self.line);
                self.stage = self.line_end(&line);
                self.line = line;
                self.line.clear();
            }
            Stage::Length(left) => {
                self.body_byte(byte);
                self.stage = if left > 1 { Stage::Length(left - 1) } else { Stage::Done };
            }
            Stage::Chunk(left) => {
                self.body_byte(byte);
                self.stage = if left > 1 { Stage::Chunk(left - 1) } else { Stage::ChunkEnd };
            }
            Stage::Done | Stage::Lost | Stage::Nonsense => {}
        }
    }

    fn line_end(&mut self, line: &Word) -> Stage {
        let text = line.bytes.trim_ascii();
        match self.stage {
            Stage::Line => {
                let mut words = text.splitn(3, |&byte| byte == b' ');
                for word in words.by_ref().take(2) {
                    self.fingerprint.write(word.split(|&byte| byte == b'?').next().unwrap_or_default());
                    self.fingerprint.write_u8(0);
                }
                // A line longer than is kept has lost its version, and is one all the same.
                let http = line.cut || words.next().is_some_and(|version| version.starts_with(b"HTTP/1."));
                if http { Stage::Header } else { Stage::Nonsense }
            }
            Stage::Header if text.is_empty() => self.head_end(),
            Stage::Header => {
                self.header(line, text);
                Stage::Header
            }
            Stage::ChunkSize => {
                let digits = text.split(|&byte| byte == b';').next().unwrap_or_default().trim_ascii();
                match std::str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text, 16).ok()) {
                    Some(0) => Stage::Trailer,
                    Some(size) => Stage::Chunk(size),
                    None => Stage::Lost,
                }
            }
            Stage::ChunkEnd if text.is_empty() => Stage::ChunkSize,
            Stage::Trailer if text.is_empty() => Stage::Done,
            Stage::Trailer => Stage::Trailer,
            _ => Stage::Lost,
        }
    }

    fn header(&mut self, line: &Word, text: &[u8]) {
        let Some(at) = text.iter().position(|&byte| byte == b':') else { return };
        let (name, value) = (text[..at].trim_ascii(), text[at + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") && !line.cut {
            self.length = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            self.chunked |= value.to_ascii_lowercase().ends_with(b"chunked");
        }
    }

    fn head_end(&mut self) -> Stage {
        if self.chunked {
            return Stage::ChunkSize;
        }
        let length = *self.length.get_or_insert(0);
        self.fingerprint.write_u64(length);
        if length == 0 { Stage::Done } else { Stage::Length(length) }
    }

    fn body_byte(&mut self, byte: u8) {
        self.fingerprint.write_u8(byte);
        self.json.byte(byte);
    }
}

/// Finds keys of the outermost object; skips over everything else, strings above all.
#[derive(Debug, Default)]
struct Json {
    begun: bool,
    facts: BodyFacts,
    /// Objects and arrays that are open.
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// A key has been read and its value is next.
    has_key: bool,
    key: Word,
    value: Word,
    /// The value is a string.
    quoted: bool,
    lost: bool,
}

impl Json {
    fn byte(&mut self, byte: u8) {
        if self.lost {
            return;
        }
        if !self.begun {
            if !byte.is_ascii_whitespace() {
                self.begun = true;
                self.depth = 1;
                // In anything but an object there is nothing to find.
                self.lost = byte != b'{';
            }
            return;
        }
        if self.in_string {
            return self.string_byte(byte);
        }
        match byte {
            b'"' => {
                self.in_string = true;
                if self.depth == 1 && self.has_key {
                    self.quoted = true;
                } else if self.depth == 1 {
                    self.key.clear();
                }
            }
            b'{' | b'[' => {
                // As a value it is none of those that are asked for.
                self.value.cut = true;
                self.depth += 1;
                self.lost |= self.depth == u32::MAX;
            }
            b':' if self.depth == 1 => {
                self.has_key = true;
                self.quoted = false;
                self.value.clear();
            }
            b',' if self.depth == 1 => self.value_end(),
            b'}' | b']' => {
                if self.depth == 1 {
                    self.value_end();
                    self.lost = true;
                }
                self.depth -= 1;
            }
            byte if self.depth == 1 && !byte.is_ascii_whitespace() => self.keep(byte),
            _ => {}
        }
    }

    fn string_byte(&mut self, byte: u8) {
        if byte == b'"' && !self.escaped {
            self.in_string = false;
            return;
        }
        // An escape would have to be decoded; a name that holds one is left as not seen.
        if byte == b'\\' && self.depth == 1 {
            let word = if self.has_key { &mut self.value } else { &mut self.key };
            word.cut = true;
        }
        self.escaped = byte == b'\\' && !self.escaped;
        if self.depth == 1 {
            self.keep(byte);
        }
    }

    /// Keeps a byte of a key, or of the value of a key that is asked for; of no other.
    fn keep(&mut self, byte: u8) {
        if !self.has_key {
            self.key.push(byte);
        } else if matches!(&*self.key.bytes, b"model" | b"stream" | b"max_tokens" | b"max_completion_tokens" | b"n") {
            self.value.push(byte);
        }
    }

    fn value_end(&mut self) {
        if let (true, Some(key), Some(value)) = (self.has_key, self.key.whole(), self.value.whole()) {
            match (key, self.quoted) {
                ("model", true) => self.facts.model = Some(value.to_owned()),
                ("stream", false) => self.facts.stream = value.parse().ok(),
                ("max_tokens" | "max_completion_tokens", false) => {
                    self.facts.max_tokens = value.parse().ok().or(self.facts.max_tokens);
                }
                ("n", false) => self.facts.n = value.parse().ok(),
                _ => {}
            }
        }
        self.has_key = false;
        self.key.clear();
        self.value.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(pieces: &[&[u8]]) -> Request {
        let mut request = Request::new(DefaultHasher::new());
        for piece in pieces {
            request.push(piece);
        }
        request
    }

    fn with_body(body: &str) -> String {
        format!("POST /v1/completions?key=1 HTTP/1.1\r\nHost: x\r\nContent-LENGTH: {}\r\n\r\n{body}", body.len())
    }

    fn facts(model: Option<&str>, stream: Option<bool>, max_tokens: Option<u32>) -> Option<BodyFacts> {
        Some(BodyFacts { model: model.map(str::to_owned), stream, max_tokens, n: None })
    }

    #[test]
    fn top_level_values_are_found_and_nothing_else() {
        let table = [
            (r#"{"model":"m","stream":true,"max_tokens":7}"#, facts(Some("m"), Some(true), Some(7))),
            (
                r#" { "messages" : [{"role":"user","content":"\"model\": \"x\", {["}], "model" : "m/1" , "stream" : false }"#,
                facts(Some("m/1"), Some(false), None),
            ),
            (r#"{"max_completion_tokens":9,"prompt":"\\","model":"m"}"#, facts(Some("m"), None, Some(9))),
            (r#"{"metadata":{"model":"inner"},"stream":null,"max_tokens":"7"}"#, facts(None, None, None)),
            (r#"{"prompt":"model","model":7,"max_tokens":-1}"#, facts(None, None, None)),
            (r#"{"model":"a\u0062","stream":true}"#, facts(None, Some(true), None)),
            (r#"["model","m"]"#, facts(None, None, None)),
            (r#"{"model":{"a":"b"},"stream":[true],"max_tokens":[1]}"#, facts(None, None, None)),
            ("\x01\x02{\"model\":\"m\"}", facts(None, None, None)),
            // What is not whole is not seen.
            (r#"{"stream":true,"model":"m"#, facts(None, Some(true), None)),
        ];
        for (body, expected) in table {
            assert_eq!(read(&[with_body(body).as_bytes()]).facts(), expected, "{body}");
        }
        assert_eq!(read(&[b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]).facts(), None);
        let answers = |body| read(&[with_body(body).as_bytes()]).facts().and_then(|facts| facts.n);
        assert_eq!(
            (answers(r#"{"n":3,"no":4}"#), answers(r#"{"n":"3"}"#), answers(r#"{"a":{"n":3}}"#)),
            (Some(3), None, None)
        );
        assert_eq!(read(&[b"POST me\r\n\r\n{\"model\":\"m\"}"]).facts(), None);
    }

    #[test]
    fn chunked_bodies_are_put_together() {
        let head = "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        let request = read(&[format!("{head}8\r\n{{\"model\"\r\n5;x=1\r\n:\"m\"}}\r\n0\r\n\r\n").as_bytes()]);
        assert_eq!((request.facts(), request.done()), (facts(Some("m"), None, None), true));
        assert_eq!(request.announced_bytes(), None);
        assert!(read(&[format!("{head}zz\r\n").as_bytes()]).done());
    }

    #[test]
    fn a_repeated_request_has_the_same_fingerprint_and_another_has_not() {
        let of = |text: String| read(&[text.as_bytes()]).fingerprint();
        let body = r#"{"model":"m","prompt":"a"}"#;
        assert_eq!(of(with_body(body)), of(with_body(body).replace("Host: x", "Host: y").replace("key=1", "key=2")));
        assert_ne!(of(with_body(body)), of(with_body(&body.replace("\"a\"", "\"b\""))));
        assert_ne!(of(with_body(body)), of(with_body(body).replace("/v1/completions", "/v1/other")));
    }

    #[test]
    fn the_prompt_shows_nowhere() {
        let text = with_body(r#"{"prompt":"secret words","model":"m","secret":"too"}"#);
        for cut in 0..text.len() {
            assert!(!format!("{:?}", read(&[&text.as_bytes()[..cut]])).contains("secret"), "at {cut}");
        }
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(body in "[ -~\\\\\"{}:,]{0,60}", cuts in proptest::collection::vec(1usize..20, 0..20)) {
            let text = with_body(&format!("{{\"prompt\":{body},\"model\":\"m\"}}"));
            let whole = read(&[text.as_bytes()]);
            let mut rest = text.as_bytes();
            let mut pieces = Vec::new();
            for cut in cuts {
                let (piece, left) = rest.split_at(cut.min(rest.len()));
                pieces.push(piece);
                rest = left;
            }
            pieces.push(rest);
            let cut = read(&pieces);
            prop_assert_eq!(whole.facts(), cut.facts());
            prop_assert_eq!(whole.fingerprint(), cut.fingerprint());
            prop_assert_eq!(whole.announced_bytes(), Some(text.len() as u64));
        }

        #[test]
        fn any_bytes_return(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = (read(&[&bytes]).facts(), read(&[b"POST / HTTP/1.1\r\nContent-Length: 999\r\n\r\n", &bytes]).facts());
        }
    }
}
