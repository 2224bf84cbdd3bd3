//! Reads an answer from the beginnings of its segments: status, where the body ends, and which segment
//! brought the first token. Pure; memory is bounded by two small buffers.
//!
//! The kernel sends at most the first kilobyte of a segment, and none of a stream once it is under way,
//! so this is no HTTP parser: it reads what it is given and says "unknown" where it was not given enough.

use engine_wire::token::{is_end, is_token};

/// Longest head that is read, bytes.
const HEAD_LIMIT_BYTES: usize = 8192;
/// Longest line of a stream that is kept when it is cut over segments, bytes.
const LINE_LIMIT_BYTES: usize = 4096;

/// How the end of the body can be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// The head was not (wholly) seen.
    Unknown,
    /// Ends when the answer, head included, has this many bytes.
    Length(u64),
    Chunked,
    UntilClose,
}

/// What a segment brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// Whether a `data:` line that is a token begins or ends in it.
    pub token: bool,
    /// Whether any `data:` line was seen in it, but for those that only end the stream.
    pub data: bool,
}

/// One answer being read.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status of the final (not interim) answer; 0 until seen.
    pub status: u16,
    pub framing: Framing,
    head: Vec<u8>,
    in_head: bool,
    /// Bytes of the answer before what `head` holds: interim answers.
    before_head: u64,
    /// HEAD requests are answered without a body.
    bodiless: bool,
    event_stream: bool,
    line: Vec<u8>,
    /// Answer bytes given so far, to notice a gap.
    position: u64,
}

impl Answer {
    /// Begins with the answer's first byte.
    pub fn new() -> Self {
        Self {
            status: 0,
            framing: Framing::Unknown,
            head: Vec::new(),
            in_head: true,
            before_head: 0,
            bodiless: false,
            event_stream: true,
            line: Vec::new(),
            position: 0,
        }
    }

    /// The request's method was HEAD.
    pub fn bodiless(&mut self) {
        self.bodiless = true;
    }

    /// Takes a segment of `segment_bytes`, of which `text` is the beginning, and which ends at byte `end` of
    /// the answer.
    pub fn segment(&mut self, text: &[u8], segment_bytes: u32, end: u64) -> Segment {
        let start = end.saturating_sub(u64::from(segment_bytes));
        if start != self.position {
            self.gap();
        }
        self.position = end;
        let whole = text.len() == segment_bytes as usize;
        let body = if self.in_head { self.take_head(text, whole) } else { text.to_vec() };
        self.take_body(&body, whole)
    }

    /// How many bytes of the next segment are this answer's, if another one follows it there: by the announced length,
    /// or where the text shows an answer begin. Takes what [`Answer::segment`] does.
    pub fn boundary(&self, text: &[u8], segment_bytes: u32, end: u64) -> Option<u32> {
        let begins = |text: &[u8]| text.starts_with(b"HTTP/1.");
        let start = end.saturating_sub(u64::from(segment_bytes));
        if start > 0 && !self.in_head && begins(text) {
            // It has ended before, in a way that was not seen.
            return Some(0);
        }
        let mut read = self.clone();
        read.segment(text, segment_bytes, end);
        match read.framing {
            Framing::Length(total) => u32::try_from(total.saturating_sub(start)).ok(),
            Framing::UntilClose => None,
            Framing::Chunked | Framing::Unknown => {
                const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
                let ends = |at: &usize| text[*at..].starts_with(LAST_CHUNK) && begins(&text[at + LAST_CHUNK.len()..]);
                (0..text.len()).find(ends).map(|at| (at + LAST_CHUNK.len()) as u32)
            }
        }
    }

    /// Passes over a segment of the stream that was told without its text and began and ended with an event.
    pub fn skip(&mut self, segment_bytes: u32) {
        self.line.clear();
        self.position += u64::from(segment_bytes);
    }

    /// Whether the body is complete when the answer has `bytes` bytes and, or not, a last chunk at its end.
    pub fn complete(&self, bytes: u64, terminated: bool) -> bool {
        match self.framing {
            Framing::Length(total) => bytes >= total,
            Framing::Chunked | Framing::Unknown => terminated,
            Framing::UntilClose => false,
        }
    }

    /// Whether the closing of the connection ends the body regularly.
    pub fn complete_at_close(&self, bytes: u64, terminated: bool) -> bool {
        self.framing == Framing::UntilClose || self.complete(bytes, terminated)
    }

    /// Some segments were not seen: what stood half-read is dropped.
    fn gap(&mut self) {
        self.line.clear();
        self.head.clear();
        self.in_head = false;
    }

    /// Reads on in the head; returns what belongs to the body.
    fn take_head(&mut self, text: &[u8], whole: bool) -> Vec<u8> {
        self.head.extend_from_slice(text);
        loop {
            let Some(length) = find(&self.head, b"\r\n\r\n").map(|at| at + 4) else {
                if !whole || self.head.len() > HEAD_LIMIT_BYTES {
                    self.gap();
                }
                return Vec::new();
            };
            let rest = self.head.split_off(length);
            let head = std::mem::replace(&mut self.head, rest);
            let interim = self.read_head(&head);
            if interim {
                self.before_head += length as u64;
                continue;
            }
            self.in_head = false;
            return std::mem::take(&mut self.head);
        }
    }

    /// Reads a whole head; true when it is an interim answer (1xx) that another one follows.
    fn read_head(&mut self, head: &[u8]) -> bool {
        let mut lines = head.split(|&b| b == b'\n').map(|line| line.trim_ascii());
        let Some(status) = lines.next().and_then(status_of) else {
            // Seen, and no answer of HTTP: whatever is in it is no stream of tokens.
            self.event_stream = false;
            return false;
        };
        if (100..200).contains(&status) && status != 101 {
            return true;
        }
        self.status = status;
        let mut length = None;
        let mut chunked = false;
        self.event_stream = false;
        for (name, value) in lines.filter_map(header) {
            if name.eq_ignore_ascii_case(b"content-length") {
                length = std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
            } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
                chunked = value.to_ascii_lowercase().ends_with(b"chunked");
            } else if name.eq_ignore_ascii_case(b"content-type") {
                self.event_stream = value.to_ascii_lowercase().starts_with(b"text/event-stream");
            }
        }
        let head_end = self.before_head + head.len() as u64;
        self.framing = if self.bodiless || matches!(status, 204 | 304) {
            Framing::Length(head_end)
        } else if chunked {
            Framing::Chunked
        } else if let Some(length) = length {
            Framing::Length(head_end.saturating_add(length))
        } else {
            Framing::UntilClose
        };
        false
    }

    /// Looks for `data:` lines. Sizes of chunks stand on lines of their own and are passed over like them.
    fn take_body(&mut self, text: &[u8], whole: bool) -> Segment {
        let mut seen = Segment::default();
        if !self.event_stream {
            return seen;
        }
        let mut rest = text;
        while let Some(at) = rest.iter().position(|&b| b == b'\n') {
            self.push_line(&rest[..at]);
            rest = &rest[at + 1..];
            let line = std::mem::take(&mut self.line);
            self.judge(&line, &mut seen);
        }
        if whole {
            self.push_line(rest);
            return seen;
        }
        // What was cut off is beyond the first kilobyte. Where other events stood before it, more of them
        // follow, and the role's event comes once: a token is in there.
        let line = std::mem::take(&mut self.line);
        self.judge(&[&line, rest].concat(), &mut seen);
        seen.token |= seen.data;
        seen
    }

    fn push_line(&mut self, part: &[u8]) {
        let room = LINE_LIMIT_BYTES.saturating_sub(self.line.len());
        self.line.extend_from_slice(&part[..part.len().min(room)]);
    }

    fn judge(&self, line: &[u8], seen: &mut Segment) {
        let Some(payload) = line.trim_ascii_end().strip_prefix(b"data:") else { return };
        let payload = payload.trim_ascii();
        // Counted as the kernel counts: what only ends the stream is no data.
        seen.data |= !is_end(payload);
        seen.token |= is_token(payload);
    }
}

fn status_of(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(b"HTTP/1.")?;
    std::str::from_utf8(rest.get(2..5)?).ok()?.parse().ok()
}

fn header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = line.iter().position(|&b| b == b':')?;
    Some((line[..at].trim_ascii(), line[at + 1..].trim_ascii()))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds segments whole; returns the number of the segment that brought the first token, status, framing
    /// and whether the body is complete after the last one.
    fn check(segments: &[&str]) -> (Option<usize>, u16, Framing) {
        let mut answer = Answer::new();
        let mut end = 0;
        let mut first = None;
        for (i, segment) in segments.iter().enumerate() {
            end += segment.len() as u64;
            let shown = &segment.as_bytes()[..segment.len().min(1024)];
            if answer.segment(shown, segment.len() as u32, end).token && first.is_none() {
                first = Some(i);
            }
        }
        (first, answer.status, answer.framing)
    }

    const SSE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    const ROLE: &str = "20\r\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\r\n";
    const TOKEN: &str = "20\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n\r\n";

    #[test]
    fn first_token_is_told_from_head_comment_and_role() {
        assert_eq!(check(&[SSE, ": waiting\n\n", ROLE, TOKEN]), (Some(3), 200, Framing::Chunked));
        assert_eq!(check(&[&format!("{SSE}{ROLE}"), TOKEN]), (Some(1), 200, Framing::Chunked));
        assert_eq!(check(&[&format!("{SSE}{ROLE}{TOKEN}")]), (Some(0), 200, Framing::Chunked));
        assert_eq!(check(&[&format!("{SSE}{ROLE}"), "20\r\n", "data: {\"tokens\":[5]}", "\n\n"]).0, Some(3));
        assert_eq!(check(&[&SSE[..30], &SSE[30..], "5\r\ndata: {\"tokens\":[1]}\n\n"]).0, Some(2));
        // Beyond what the kernel shows of a segment.
        assert_eq!(check(&[&format!("{SSE}{ROLE}{}{TOKEN}", ": filler\n".repeat(120))]).0, Some(0));
    }

    #[test]
    fn ends_are_known_by_length_or_close() {
        assert_eq!(check(&["HTTP/1.1 200 OK\r\ncontent-LENGTH: 5\r\n\r\n", "hello"]).2, Framing::Length(43));
        assert_eq!(check(&["HTTP/1.0 200 OK\r\n\r\n", "hello"]).2, Framing::UntilClose);
        assert_eq!(check(&["HTTP/1.1 204 No Content\r\n\r\n"]), (None, 204, Framing::Length(27)));
        let interim = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(check(&[interim]), (None, 404, Framing::Length(70)));
        assert_eq!(check(&["HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"]).2, Framing::UntilClose);
        assert_eq!(check(&["not http at all"]), (None, 0, Framing::Unknown));
    }

    #[test]
    fn what_is_no_stream_has_no_tokens() {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n\r\n";
        assert_eq!(check(&[head, "data: {\"a\":1}\n"]).0, None);
        assert_eq!(check(&["\0\u{1}\r\n\r\ndata: {\"tokens\":[1]}\n\n"]).0, None);
    }
}
