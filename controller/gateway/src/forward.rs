//! One attempt at an engine that speaks the API by itself: the client's own body on the wire, and the answer as it
//! comes. A stream is passed on in whole events, so that an error which has to follow them is an event of its own;
//! engines write whole events, so nothing is held up by it.

use crate::connection::Connection;
use crate::endpoint::Lease;
use crate::hop::{self, Setback};
use crate::options::GatewayOptions;
use bytes::Bytes;
use engine_http::{ForwardUsage, ForwardedWhole};
use engine_wire::token::is_token;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use serde::Deserialize;

/// Longest answer in one piece, bytes: vectors of two thousand texts.
const WHOLE_LIMIT_BYTES: usize = 128 << 20;
/// Longest event of a stream, bytes.
const EVENT_LIMIT_BYTES: usize = 4 << 20;
/// What of an error's body goes into messages, bytes.
const EXCERPT_BYTES: usize = 200;

/// An answer that has begun.
pub enum Answer {
    Whole(ForwardedWhole, Option<Connection>),
    Stream(ForwardStream),
}

/// Sends a request and waits for its answer's head; of an answer that is no stream, for all of it.
pub async fn send(
    lease: &Lease,
    connection: Connection,
    request: Request<Full<Bytes>>,
    options: &GatewayOptions,
) -> Result<Answer, Setback> {
    let (mut connection, response) = hop::ask(lease, connection, request, options).await?;
    let status = response.status();
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let is_stream = content_type.as_deref().is_some_and(|value| value.starts_with("text/event-stream"));
    if status.is_success() && is_stream {
        return Ok(Answer::Stream(ForwardStream { connection, body: response.into_body(), events: Events::default() }));
    }
    let body = Limited::new(response.into_body(), WHOLE_LIMIT_BYTES).collect().await;
    let body = body.map_err(|error| Setback::Broken(format!("the answer was cut: {error}")))?.to_bytes();
    // It cannot take the request now; another one may, or this one later.
    if matches!(status.as_u16(), 408 | 429 | 503) {
        return Err(Setback::Refused(format!("{status}: {}", excerpt(&body))));
    }
    let usable = connection.becomes_usable().await;
    connection.reused = true;
    let usage = told(&body).unwrap_or_default();
    let whole = ForwardedWhole { status: status.as_u16(), content_type, body, usage };
    Ok(Answer::Whole(whole, usable.then_some(connection)))
}

/// The beginning of a body, for messages.
pub fn excerpt(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(EXCERPT_BYTES)]).into_owned()
}

/// An answer of server-sent events.
pub struct ForwardStream {
    pub connection: Connection,
    pub body: Incoming,
    events: Events,
}

impl ForwardStream {
    /// The next whole events and their tokens; none when the stream has ended as it should.
    pub async fn next(&mut self) -> Result<Option<(Bytes, u32)>, Setback> {
        while !self.events.done {
            let frame = match self.body.frame().await {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Err(Setback::Broken(format!("the stream was cut: {error}"))),
                // A server that ends its answer by closing looks the same whether it is done or dead: only the
                // stream's own end tells.
                None => return Err(Setback::Broken("the stream ended without [DONE]".to_owned())),
            };
            let Ok(data) = frame.into_data() else { continue };
            if let Some(whole) = self.events.push(data)? {
                return Ok(Some(whole));
            }
        }
        Ok(None)
    }

    /// What the engine told of its tokens, or what was counted.
    pub fn usage(&self) -> ForwardUsage {
        self.events.told.unwrap_or(ForwardUsage { output_tokens: self.events.tokens, ..ForwardUsage::default() })
    }
}

/// Splits a stream into whole events and counts their tokens.
#[derive(Debug, Default)]
struct Events {
    /// An event that has begun and not ended.
    begun: Vec<u8>,
    tokens: u32,
    told: Option<ForwardUsage>,
    /// `[DONE]` was there.
    done: bool,
}

impl Events {
    /// What `chunk` completes, and its tokens.
    fn push(&mut self, chunk: Bytes) -> Result<Option<(Bytes, u32)>, Setback> {
        let whole = if self.begun.is_empty() && end_of_events(&chunk, 0) == chunk.len() {
            chunk
        } else {
            // A blank line may be cut anywhere, and is at most four bytes long.
            let from = self.begun.len().saturating_sub(3);
            self.begun.extend_from_slice(&chunk);
            let end = end_of_events(&self.begun, from);
            let rest = self.begun.split_off(end);
            if rest.len() > EVENT_LIMIT_BYTES {
                return Err(Setback::Broken(format!("an event is longer than {EVENT_LIMIT_BYTES} bytes")));
            }
            Bytes::from(std::mem::replace(&mut self.begun, rest))
        };
        if whole.is_empty() {
            return Ok(None);
        }
        let mut tokens = 0;
        for line in whole.split(|&byte| byte == b'\n') {
            let Some(payload) = line.strip_prefix(b"data:") else { continue };
            let payload = payload.trim_ascii();
            self.done |= payload == b"[DONE]";
            tokens += u32::from(is_token(payload));
            self.told = told(payload).or(self.told);
        }
        self.tokens += tokens;
        Ok(Some((whole, tokens)))
    }
}

/// Where the last blank line of `bytes` ends, looked for from `from` on; 0 when there is none.
fn end_of_events(bytes: &[u8], from: usize) -> usize {
    let after = |blank: &[u8]| bytes[from..].windows(blank.len()).rposition(|window| window == blank);
    [&b"\n\n"[..], b"\n\r\n"]
        .into_iter()
        .filter_map(|blank| after(blank).map(|at| from + at + blank.len()))
        .max()
        .unwrap_or(0)
}

/// What engines say of tokens: OpenAI's usage, or llama.cpp's timings.
#[derive(Deserialize)]
struct Told {
    usage: Option<Usage>,
    timings: Option<Timings>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u32>,
}

#[derive(Deserialize)]
struct Timings {
    /// Prompt tokens that were computed, and those that were in the cache.
    #[serde(default)]
    prompt_n: u32,
    #[serde(default)]
    cache_n: u32,
    #[serde(default)]
    predicted_n: u32,
}

/// Usage that an answer or an event of one carries. Only those with the word in them are parsed.
fn told(json: &[u8]) -> Option<ForwardUsage> {
    let has = |word: &[u8]| json.windows(word.len()).any(|window| window == word);
    if !has(b"\"usage\"") && !has(b"\"timings\"") {
        return None;
    }
    let told: Told = serde_json::from_slice(json).ok()?;
    let by_usage = told.usage.map(|usage| ForwardUsage {
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.prompt_tokens_details.and_then(|details| details.cached_tokens).unwrap_or(0),
        output_tokens: usage.completion_tokens,
    });
    let by_timings = told.timings.map(|timings| ForwardUsage {
        prompt_tokens: timings.prompt_n + timings.cache_n,
        cached_tokens: timings.cache_n,
        output_tokens: timings.predicted_n,
    });
    by_usage.or(by_timings)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HI: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n";
    const END: &str =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5}}\n\ndata: [DONE]\n\n";

    /// Pushes the stream in chunks of so many bytes; what comes out must be the stream, in whole events.
    fn check(stream: &str, chunk_bytes: usize, tokens: u32, told: Option<ForwardUsage>) {
        let mut events = Events::default();
        let mut passed = Vec::new();
        let mut counted = 0;
        for chunk in stream.as_bytes().chunks(chunk_bytes) {
            if let Some((whole, tokens)) = events.push(Bytes::copy_from_slice(chunk)).unwrap() {
                assert!(whole.ends_with(b"\n\n") || whole.ends_with(b"\n\r\n"), "{whole:?} of {stream:?}");
                passed.extend_from_slice(&whole);
                counted += tokens;
            }
        }
        assert_eq!((passed.as_slice(), counted, events.told), (stream.as_bytes(), tokens, told), "{chunk_bytes}");
        assert!(events.done && events.begun.is_empty(), "{stream:?}");
    }

    #[test]
    fn events_are_passed_on_whole_and_counted_however_they_are_cut() {
        let usage = |prompt_tokens, cached_tokens, output_tokens| {
            Some(ForwardUsage { prompt_tokens, cached_tokens, output_tokens })
        };
        let role = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}\n\n";
        let timings = "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}],\"timings\":{\"cache_n\":3,\"prompt_n\":4,\"predicted_n\":2}}\n\ndata: [DONE]\n\n";
        for bytes in [1, 2, 3, 7, 64, 100_000] {
            check(&format!("{role}{HI}{HI}{END}"), bytes, 2, usage(7, 0, 5));
            check(&format!(": waiting\n\n{HI}{END}").replace('\n', "\r\n"), bytes, 1, usage(7, 0, 5));
            check(&format!("{HI}{HI}{timings}"), bytes, 2, usage(7, 3, 2));
            check(&format!("{HI}{HI}{HI}data: [DONE]\n\n"), bytes, 3, None);
        }
    }

    #[test]
    fn an_event_without_end_is_bounded() {
        let mut events = Events::default();
        let chunk = Bytes::from(vec![b'x'; 1 << 20]);
        let refused = (0..8).find_map(|_| events.push(chunk.clone()).err());
        assert!(matches!(refused, Some(Setback::Broken(_))), "{refused:?}");
    }
}
