//! One streamed completion, timed at the client.

use crate::http::Connection;
use anyhow::{Result, bail, ensure};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// When things happened, counted from just before the connection was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    pub first_byte: Duration,
    /// First event with text, or with a finish reason where a token has no text of its own.
    pub first_token: Duration,
    pub last_byte: Duration,
}

/// A finished stream.
pub struct Stream {
    /// The client's socket address, which the kernel's record names too.
    pub client: SocketAddr,
    pub times: Times,
}

/// Posts `body` on a new connection and hands over text as it comes. Fails unless the stream is complete.
pub fn stream(addr: SocketAddr, path: &str, body: &Value, on_text: &mut dyn FnMut(&str)) -> Result<Stream> {
    let begun = Instant::now();
    let mut connection = Connection::open(addr)?;
    let client = connection.local_addr()?;
    connection.send("POST", path, "connection: close\r\n", body.to_string().as_bytes())?;
    let head = connection.read_head()?;
    let mut times = Times { first_byte: begun.elapsed(), ..Times::default() };
    let (mut left, mut pending, mut events, mut done) = (None, Vec::new(), 0, false);
    loop {
        let piece = connection.read_piece(&head, &mut left)?;
        if piece.is_empty() {
            break;
        }
        times.last_byte = begun.elapsed();
        pending.extend_from_slice(&piece);
        if head.status != 200 {
            continue;
        }
        for event in take_events(&mut pending) {
            if event == "[DONE]" {
                done = true;
                continue;
            }
            let event: Value = serde_json::from_str(&event)?;
            if let Some(error) = event.get("error") {
                bail!("the stream ended with an error: {error}");
            }
            let text = text_of(&event);
            if text.is_empty() && event["choices"][0]["finish_reason"].is_null() {
                continue;
            }
            if events == 0 {
                times.first_token = times.last_byte;
            }
            events += 1;
            on_text(text);
        }
    }
    ensure!(head.status == 200, "status {}: {}", head.status, String::from_utf8_lossy(&pending));
    ensure!(done && events > 0, "the stream ended early, after {events} events");
    Ok(Stream { client, times })
}

/// Data of the complete events at the front; comments and an incomplete rest are dropped and kept.
fn take_events(pending: &mut Vec<u8>) -> Vec<String> {
    let mut events = Vec::new();
    while let Some(end) = pending.windows(2).position(|pair| pair == b"\n\n") {
        let event: Vec<u8> = pending.drain(..end + 2).collect();
        let text = String::from_utf8_lossy(&event);
        events.extend(text.lines().filter_map(|line| line.strip_prefix("data:")).map(|data| data.trim().to_owned()));
    }
    events
}

fn text_of(event: &Value) -> &str {
    let choice = &event["choices"][0];
    choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str()).unwrap_or("")
}

#[cfg(test)]
mod tests {
    use super::take_events;

    #[test]
    fn events_are_taken_whole() {
        let mut pending = b": waiting\n\ndata: {\"a\":1}\n\ndata: {\"b\"".to_vec();
        assert_eq!(take_events(&mut pending), ["{\"a\":1}"]);
        assert_eq!(pending, b"data: {\"b\"");
        pending.extend_from_slice(b":2}\n\ndata: [DONE]\n\n");
        assert_eq!(take_events(&mut pending), ["{\"b\":2}", "[DONE]"]);
        assert!(pending.is_empty());
    }
}
