//! Reading a request's body within bounds of size and time, whether its length was announced or it is chunked.

use crate::{ApiError, Limits};
use bytes::Buf;
use futures_util::{Stream, StreamExt};
use std::pin::pin;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use warp::http::HeaderMap;
use warp::http::header::CONTENT_LENGTH;

/// A body that is too large is read and thrown away up to this many times the limit, because a client that
/// is still sending when the connection is closed sees a reset instead of the answer.
const DISCARD_FACTOR: u64 = 4;

/// Bodies up to this length are read without asking for a place.
const SMALL_BODY_BYTES: u64 = 64 << 10;
/// Larger bodies that this process reads at a time: together with the small ones of all connections, they bound
/// the memory that clients can make it hold.
static LARGE_BODY_PLACES: Semaphore = Semaphore::const_new(32);

/// Reads the whole body: at most `limits.body_bytes_max`, within `limits.body_timeout`.
pub async fn read_body<S, B>(headers: &HeaderMap, body: S, limits: &Limits) -> Result<Vec<u8>, ApiError>
where
    S: Stream<Item = Result<B, warp::Error>>,
    B: Buf,
{
    let limit_bytes = limits.body_bytes_max;
    let discard_bytes = limit_bytes.saturating_mul(DISCARD_FACTOR);
    let announced = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > discard_bytes) {
        return Err(ApiError::BodyTooLarge { limit_bytes });
    }
    let deadline = Instant::now() + limits.body_timeout;
    let mut body = pin!(body);
    // What is announced may never come: memory grows with what arrives.
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(64 << 10) as usize);
    let mut seen_bytes: u64 = 0;
    let mut place = None;
    let late = |_| ApiError::BodyTimeout { limit_ms: limits.body_timeout.as_millis() as u64 };
    loop {
        if seen_bytes > SMALL_BODY_BYTES && place.is_none() {
            place = timeout_at(deadline, LARGE_BODY_PLACES.acquire()).await.map_err(late)?.ok();
        }
        let next = timeout_at(deadline, body.next()).await.map_err(late)?;
        let Some(part) = next else { break };
        let mut part = part.map_err(|error| ApiError::InvalidRequest {
            message: format!("The request body could not be read: {error}"),
            param: None,
        })?;
        seen_bytes += part.remaining() as u64;
        if seen_bytes > discard_bytes {
            break;
        }
        if seen_bytes > limit_bytes {
            bytes = Vec::new();
            continue;
        }
        while part.has_remaining() {
            let chunk = part.chunk();
            let length = chunk.len();
            bytes.extend_from_slice(chunk);
            part.advance(length);
        }
    }
    if seen_bytes > limit_bytes {
        return Err(ApiError::BodyTooLarge { limit_bytes });
    }
    Ok(bytes)
}
