//! A streaming client over a plain socket, so that a test sees every byte, the time of every read and the
//! socket's own address, which joins it with what the kernel saw.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A stream as its client received it. Times are CLOCK_MONOTONIC ns of the read that brought the bytes.
#[derive(Clone, Debug, Default)]
pub struct Streamed {
    pub status: u16,
    pub local: Option<SocketAddr>,
    pub headers: String,
    /// JSON of every `data:` event but `[DONE]`, with the time of its read.
    pub events: Vec<(u64, Value)>,
    /// SSE comment lines.
    pub comments: usize,
    /// Whether `[DONE]` came.
    pub done: bool,
    pub sent_ns: u64,
    pub last_read_ns: u64,
    /// The whole body of an answer that is no stream.
    pub body: String,
}

impl Streamed {
    /// The text of all events together, chat or completion.
    pub fn text(&self) -> String {
        self.events.iter().map(|(_, event)| piece(event)).collect()
    }

    /// Time of the read that brought the first event with text.
    pub fn first_text_ns(&self) -> Option<u64> {
        self.events.iter().find(|(_, event)| !piece(event).is_empty()).map(|(at, _)| *at)
    }

    /// The reason in the last event that has one.
    pub fn finish_reason(&self) -> Option<String> {
        self.events.iter().rev().find_map(|(_, event)| event["choices"][0]["finish_reason"].as_str().map(str::to_owned))
    }

    /// The usage event's completion tokens.
    pub fn completion_tokens(&self) -> Option<u64> {
        self.events.iter().rev().find_map(|(_, event)| event["usage"]["completion_tokens"].as_u64())
    }

    /// The message of an error event, if one came.
    pub fn error(&self) -> Option<String> {
        self.events.iter().find_map(|(_, event)| event["error"]["message"].as_str().map(str::to_owned))
    }

    /// Fails unless this is a complete, error-free stream.
    pub fn complete(&self) -> Result<()> {
        ensure!(self.status == 200, "status {}: {}", self.status, self.body);
        ensure!(self.error().is_none(), "error event: {:?}", self.error());
        ensure!(self.done, "no [DONE] after {} events", self.events.len());
        ensure!(self.finish_reason().is_some(), "no finish_reason");
        Ok(())
    }
}

fn piece(event: &Value) -> &str {
    let choice = &event["choices"][0];
    choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str()).unwrap_or("")
}

/// CLOCK_MONOTONIC, ns: the kernel's clock for probe events.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Posts `body` on a connection of its own and reads the answer to its end.
pub fn post(addr: SocketAddr, path: &str, body: &Value) -> Result<Streamed> {
    let mut socket = TcpStream::connect_timeout(&addr, Duration::from_secs(10)).context("connecting")?;
    post_on(&mut socket, path, body, true)
}

/// Posts `body` on an open connection and reads the answer to its end.
pub fn post_on(socket: &mut TcpStream, path: &str, body: &Value, close: bool) -> Result<Streamed> {
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(120)))?;
    let body = body.to_string();
    let connection = if close { "close" } else { "keep-alive" };
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nConnection: {connection}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut answer = Streamed { local: Some(socket.local_addr()?), sent_ns: monotonic_ns(), ..Streamed::default() };
    socket.write_all(format!("{head}{body}").as_bytes())?;
    read_answer(socket, &mut answer)?;
    Ok(answer)
}

fn read_answer(socket: &mut TcpStream, answer: &mut Streamed) -> Result<()> {
    let mut raw = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut parser = Parser::default();
    loop {
        let n = socket.read(&mut buffer).context("reading the answer")?;
        answer.last_read_ns = monotonic_ns();
        if n == 0 {
            ensure!(parser.head_done, "connection closed before the answer's head");
            return parser.end_of_input(&raw, answer);
        }
        raw.extend_from_slice(&buffer[..n]);
        if parser.advance(&mut raw, answer)? {
            return Ok(());
        }
    }
}

/// Takes HTTP/1.1 framing off as bytes come.
#[derive(Default)]
struct Parser {
    head_done: bool,
    chunked: bool,
    content_length: Option<usize>,
    body: Vec<u8>,
    parsed: usize,
}

impl Parser {
    /// True when the message is complete.
    fn advance(&mut self, raw: &mut Vec<u8>, answer: &mut Streamed) -> Result<bool> {
        if !self.head_done {
            let Some(end) = find(raw, b"\r\n\r\n") else { return Ok(false) };
            let head = String::from_utf8(raw.drain(..end + 4).collect())?;
            self.read_head(&head, answer)?;
        }
        if !self.chunked {
            self.body.append(raw);
            self.parse_events(answer)?;
            return Ok(self.content_length.is_some_and(|length| self.body.len() >= length) && self.finish(answer)?);
        }
        while let Some(line_end) = find(raw, b"\r\n") {
            let size =
                usize::from_str_radix(std::str::from_utf8(&raw[..line_end])?.trim(), 16).context("chunk size")?;
            if raw.len() < line_end + 2 + size + 2 {
                return Ok(false);
            }
            raw.drain(..line_end + 2);
            self.body.extend(raw.drain(..size));
            raw.drain(..2);
            self.parse_events(answer)?;
            if size == 0 {
                return self.finish(answer);
            }
        }
        Ok(false)
    }

    fn read_head(&mut self, head: &str, answer: &mut Streamed) -> Result<()> {
        let lower = head.to_ascii_lowercase();
        answer.status = head.split(' ').nth(1).context("status line")?.parse()?;
        self.chunked = lower.contains("transfer-encoding: chunked");
        self.content_length =
            lower.lines().find_map(|line| line.strip_prefix("content-length:").and_then(|v| v.trim().parse().ok()));
        self.head_done = true;
        answer.headers = lower;
        Ok(())
    }

    fn parse_events(&mut self, answer: &mut Streamed) -> Result<()> {
        if !answer.headers.contains("text/event-stream") {
            return Ok(());
        }
        while let Some(end) = find(&self.body[self.parsed..], b"\n\n") {
            let event = std::str::from_utf8(&self.body[self.parsed..self.parsed + end])?.to_owned();
            self.parsed += end + 2;
            match event.strip_prefix("data:").map(str::trim) {
                Some("[DONE]") => answer.done = true,
                Some(json) => answer.events.push((answer.last_read_ns, serde_json::from_str(json)?)),
                None if event.starts_with(':') => answer.comments += 1,
                None => bail!("not an SSE event: {event:?}"),
            }
        }
        Ok(())
    }

    fn finish(&self, answer: &mut Streamed) -> Result<bool> {
        answer.body = String::from_utf8_lossy(&self.body).into_owned();
        Ok(true)
    }

    fn end_of_input(&self, raw: &[u8], answer: &mut Streamed) -> Result<()> {
        ensure!(!self.chunked, "connection closed inside a chunked body, {} bytes left over", raw.len());
        self.finish(answer).map(|_| ())
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
