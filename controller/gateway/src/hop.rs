//! One attempt at one instance: the request on the wire, the answer's head, its events. Every way in which an
//! instance can disappoint is sorted into three kinds here, because what follows differs: it refused (ask
//! another one), it broke (go on at another one), or the request itself is wrong (tell the client).

use crate::connection::Connection;
use crate::endpoint::Lease;
use crate::options::GatewayOptions;
use crate::sse::{HopItem, HopParser};
use bytes::Bytes;
use engine_http::{ApiError, RequestContext};
use engine_wire::hop::{Embedded, HopEvent};
use engine_wire::hop::{HEADER_DEADLINE_MS, HEADER_DIMENSIONS, HEADER_REQUEST_ID, HEADER_TENANT, HEADER_TRACEPARENT};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The code of an engine's error about an adapter's files.
const ADAPTER_UNUSABLE: &str = "adapter_unusable";
/// Longest error body read from an instance, bytes.
const ERROR_BODY_LIMIT_BYTES: usize = 64 * 1024;
/// Longest wait for the rest of an error body or of a finished stream.
const TAIL_TIMEOUT: Duration = Duration::from_secs(1);

/// Why an attempt ended without finishing the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Setback {
    /// The instance takes no more requests now (it drains, is full, or is another model's by now).
    Refused(String),
    /// The instance or the connection died, or speaks something else than the hop.
    Broken(String),
    /// The request is wrong, wherever it is sent.
    Final(ApiError),
}

/// An answer that has begun: status 200, event stream.
pub struct HopStream {
    connection: Connection,
    body: Incoming,
    parser: HopParser,
    ready: VecDeque<HopItem>,
}

/// Builds the request of one attempt. A generation's `emitted` holds what the client has.
pub fn http_request(
    lease: &Lease,
    context: &RequestContext,
    path: &str,
    request: &impl Serialize,
) -> Result<Request<Full<Bytes>>, Setback> {
    let body = serde_json::to_vec(request).map_err(|error| internal(error.to_string()))?;
    raw_request(lease, context, path, Bytes::from(body))
}

/// Builds the request of one attempt around a body of JSON.
pub fn raw_request(
    lease: &Lease,
    context: &RequestContext,
    path: &str,
    body: Bytes,
) -> Result<Request<Full<Bytes>>, Setback> {
    let remaining_ms = context.deadline.saturating_duration_since(Instant::now()).as_millis();
    Request::post(path)
        .header(HOST, lease.endpoint.addr.to_string())
        .header(CONTENT_TYPE, "application/json")
        .header(HEADER_REQUEST_ID, &context.request_id)
        .header(HEADER_TENANT, &context.tenant)
        .header(HEADER_DEADLINE_MS, remaining_ms.to_string())
        .header(HEADER_TRACEPARENT, &context.trace_parent)
        .body(Full::new(body))
        .map_err(|error| internal(format!("the request to the instance cannot be built: {error}")))
}

fn internal(message: String) -> Setback {
    Setback::Final(ApiError::Internal { message })
}

/// Sends the request and waits for the head of an answer of status 200; any other is a setback.
async fn exchange(
    lease: &Lease,
    connection: Connection,
    request: Request<Full<Bytes>>,
    options: &GatewayOptions,
) -> Result<(Connection, Response<Incoming>), Setback> {
    let (connection, response) = ask(lease, connection, request, options).await?;
    match response.status() {
        StatusCode::OK => Ok((connection, response)),
        _ => Err(error_answer(response).await),
    }
}

/// Sends the request and waits for the answer's head. A connection from the pool may have been closed by the
/// peer meanwhile; no byte of an answer has come then, so the same instance is asked again on a fresh one.
pub async fn ask(
    lease: &Lease,
    mut connection: Connection,
    request: Request<Full<Bytes>>,
    options: &GatewayOptions,
) -> Result<(Connection, Response<Incoming>), Setback> {
    let again = connection.reused.then(|| request.clone());
    let answer = match (connection.send(request).await, again) {
        (Err(_), Some(request)) => {
            connection =
                Connection::open(lease.endpoint.addr, options.connect_timeout).await.map_err(Setback::Refused)?;
            connection.send(request).await
        }
        (answer, _) => answer,
    };
    let response = answer.map_err(|error| Setback::Broken(format!("no answer: {error}")))?;
    Ok((connection, response))
}

/// Sends a generation and waits for its stream to begin.
pub async fn send(
    lease: &Lease,
    connection: Connection,
    request: Request<Full<Bytes>>,
    options: &GatewayOptions,
) -> Result<HopStream, Setback> {
    let (connection, response) = exchange(lease, connection, request, options).await?;
    let is_event_stream = response
        .headers()
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("text/event-stream"));
    if !is_event_stream {
        return Err(Setback::Broken("the answer is no event stream".to_owned()));
    }
    let body = response.into_body();
    Ok(HopStream { connection, body, parser: HopParser::default(), ready: VecDeque::new() })
}

/// Most numbers in one vector that an instance is believed to have.
const DIMENSIONS_MAX: usize = 1 << 16;

/// Sends a request for the vectors of so many texts and reads them. The connection comes back if it can carry
/// another request.
pub async fn embed(
    lease: &Lease,
    connection: Connection,
    request: Request<Full<Bytes>>,
    texts: usize,
    options: &GatewayOptions,
) -> Result<(Embedded, Option<Connection>), Setback> {
    let (mut connection, response) = exchange(lease, connection, request, options).await?;
    let dimensions = response.headers().get(HEADER_DIMENSIONS).and_then(|value| value.to_str().ok()?.parse().ok());
    let Some(dimensions) = dimensions.filter(|dimensions| (1..=DIMENSIONS_MAX).contains(dimensions)) else {
        return Err(Setback::Broken(format!("the answer has no {HEADER_DIMENSIONS}")));
    };
    let body = Limited::new(response.into_body(), texts.saturating_mul(dimensions * 4)).collect();
    let body = match tokio::time::timeout(options.stall_timeout, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => return Err(Setback::Broken(format!("the vectors were cut: {error}"))),
        Err(_) => return Err(Setback::Broken("the vectors do not arrive".to_owned())),
    };
    let Some(embedded) = Embedded::from_bytes(dimensions, texts, &body) else {
        return Err(Setback::Broken(format!("{} bytes are not the vectors of {texts} texts", body.len())));
    };
    let usable = tokio::time::timeout(TAIL_TIMEOUT, connection.becomes_usable()).await.unwrap_or(false);
    connection.reused = true;
    Ok((embedded, usable.then_some(connection)))
}

impl HopStream {
    /// The next token or the end. `HopEvent::Failed` comes out as a setback.
    pub async fn next(&mut self) -> Result<HopEvent, Setback> {
        loop {
            match self.ready.pop_front() {
                Some(HopItem::Event(HopEvent::Failed { status, code, message })) => {
                    return Err(classify(status, &code, message, None));
                }
                Some(HopItem::Event(event)) => return Ok(event),
                Some(HopItem::Done) => return Err(Setback::Broken("[DONE] without an end".to_owned())),
                None => self.read().await?,
            }
        }
    }

    /// Whether `next` has something at hand without asking the network.
    pub fn has_next(&self) -> bool {
        !self.ready.is_empty()
    }

    async fn read(&mut self) -> Result<(), Setback> {
        let frame = match self.body.frame().await {
            None => return Err(Setback::Broken("the stream ended too early".to_owned())),
            Some(Err(error)) => return Err(Setback::Broken(format!("the stream was cut: {error}"))),
            Some(Ok(frame)) => frame,
        };
        let Ok(data) = frame.into_data() else { return Ok(()) };
        let mut items = Vec::new();
        let parsed = self.parser.push(&data, &mut items);
        // Tokens before a bad line are good ones: they are delivered, and the bad line comes again as the
        // parser's error with the next read, or not at all if the stream is complete before it.
        self.ready.extend(items);
        match parsed {
            Err(error) if self.ready.is_empty() => Err(Setback::Broken(error.to_string())),
            Err(error) => {
                self.ready.push_back(HopItem::Event(HopEvent::Failed {
                    status: 502,
                    code: "malformed".to_owned(),
                    message: error.to_string(),
                }));
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// Reads the tail after the end of the stream, so that the connection can carry another request.
    pub async fn into_idle(self) -> Option<Connection> {
        read_tail(self.connection, self.body).await
    }
}

/// Reads what is left of an answer; the connection comes back if it can carry another request.
pub async fn read_tail(mut connection: Connection, mut body: Incoming) -> Option<Connection> {
    let tail = async {
        while let Some(frame) = body.frame().await {
            frame.ok()?;
        }
        connection.becomes_usable().await.then_some(())
    };
    tokio::time::timeout(TAIL_TIMEOUT, tail).await.ok()??;
    connection.reused = true;
    Some(connection)
}

/// The OpenAI error object, as far as it is needed.
#[derive(Deserialize)]
struct ErrorAnswer {
    error: ErrorDetail,
}

#[derive(Deserialize)]
struct ErrorDetail {
    message: String,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    param: Option<String>,
}

async fn error_answer(response: Response<Incoming>) -> Setback {
    let status = response.status();
    let body = Limited::new(response.into_body(), ERROR_BODY_LIMIT_BYTES).collect();
    let body = match tokio::time::timeout(TAIL_TIMEOUT, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        _ => Bytes::new(),
    };
    let detail = serde_json::from_slice::<ErrorAnswer>(&body).map(|answer| answer.error).ok();
    match detail {
        Some(detail) => classify(status.as_u16(), &detail.code.unwrap_or_default(), detail.message, detail.param),
        // Whatever answers without OpenAI's error object is not one of our engines.
        None => Setback::Broken(format!("status {status} without an error object")),
    }
}

/// Sorts an instance's error. 404 means that the port belongs to another model's instance by now; 408, 429
/// and 503 that this instance cannot take the request at present; other 4xx that nobody can.
fn classify(status: u16, code: &str, message: String, param: Option<String>) -> Setback {
    match status {
        // The instance is well, and another one would read the same files.
        _ if code == ADAPTER_UNUSABLE => Setback::Final(ApiError::Internal { message }),
        404 | 408 | 429 | 503 => Setback::Refused(format!("{status} {code}: {message}")),
        400..=499 => Setback::Final(ApiError::InvalidRequest { message, param }),
        _ => Setback::Broken(format!("{status} {code}: {message}")),
    }
}
