//! Requests for vectors through the gateway, over instances that misbehave to order: held at zero, tried elsewhere,
//! refused, cancelled, and counted once.

mod common;

use common::{Bench, MODEL, context, eventually, options, table};
use controller_gateway::{Endpoint, Gateway, GatewayOptions, Outcome};
use engine_http::{ApiError, Backend};
use engine_wire::hop::{EMBED_PATH, EmbedRequest, Embedded, HEADER_DIMENSIONS};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What an instance does with one request.
#[derive(Clone, Copy, Debug)]
enum Move {
    Serve,
    Status(u16),
    /// Dies in the middle of the vectors.
    Cut,
    /// One vector too few, well formed.
    Short,
    NoDimensions,
    Hang,
}

struct Instance {
    addr: SocketAddr,
    moves: Mutex<VecDeque<Move>>,
    requests: AtomicUsize,
    connections: AtomicUsize,
    /// Connections that the gateway closed while an answer was due.
    abandoned: AtomicUsize,
}

impl Instance {
    async fn start(moves: impl IntoIterator<Item = Move>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let instance = Arc::new(Self {
            addr: listener.local_addr().unwrap(),
            moves: Mutex::new(moves.into_iter().collect()),
            requests: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
        });
        let serving = instance.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serving.clone().connection(stream));
            }
        });
        instance
    }

    fn endpoint(&self, name: &str) -> Endpoint {
        Endpoint { instance: name.to_owned(), addr: self.addr, ready: true }
    }

    async fn connection(self: Arc<Self>, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut buffer).await {
            self.requests.fetch_add(1, Ordering::SeqCst);
            let next = self.moves.lock().unwrap().pop_front().unwrap_or(Move::Serve);
            let body = expected(&request).to_bytes();
            let header = format!("{HEADER_DIMENSIONS}: 2\r\n");
            let answer = match next {
                Move::Serve => good(&header, body.len(), &body),
                Move::Cut => good(&header, body.len(), &body[..body.len() - 3]),
                Move::Short => good(&header, body.len() - 8, &body[..body.len() - 8]),
                Move::NoDimensions => good("", body.len(), &body),
                Move::Status(status) => {
                    let body = r#"{"error":{"message":"told to","type":"x","param":"texts","code":"x"}}"#;
                    format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
                }
                Move::Hang => {
                    let gone = stream.read(&mut [0; 1]).await;
                    assert!(matches!(gone, Ok(0) | Err(_)));
                    self.abandoned.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            };
            if stream.write_all(&answer).await.is_err() || matches!(next, Move::Cut) {
                return;
            }
        }
    }
}

fn good(header: &str, length: usize, body: &[u8]) -> Vec<u8> {
    [format!("HTTP/1.1 200 OK\r\n{header}content-length: {length}\r\n\r\n").as_bytes(), body].concat()
}

async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<EmbedRequest> {
    let mut chunk = [0; 4096];
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
            assert!(head.starts_with(&format!("POST {EMBED_PATH} HTTP/1.1\r\n")), "{head}");
            assert!(head.contains("x-request-id: req-1") && head.contains("traceparent: 00-"), "{head}");
            let length = common::engine::header(&head, "content-length").parse::<usize>().unwrap();
            if buffer.len() >= end + 4 + length {
                let request = serde_json::from_slice(&buffer[end + 4..end + 4 + length]).unwrap();
                buffer.drain(..end + 4 + length);
                return Some(request);
            }
        }
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => buffer.extend_from_slice(&chunk[..read]),
        }
    }
}

/// Every instance computes the same: length and first token of each text.
fn expected(request: &EmbedRequest) -> Embedded {
    let numbers = request.texts.iter().flat_map(|text| [text.len() as f32, text[0] as f32]).collect();
    Embedded { dimensions: 2, numbers }
}

fn request() -> EmbedRequest {
    EmbedRequest { model: MODEL.to_owned(), texts: vec![vec![5, 6, 7], vec![8]] }
}

async fn embed(bench: &Bench) -> Result<Embedded, ApiError> {
    bench.gateway.embed(context(Duration::from_secs(20)), request()).await
}

#[tokio::test]
async fn vectors_come_back_and_the_connection_is_kept() {
    let instance = Instance::start([]).await;
    let bench = Bench::new(options(), vec![instance.endpoint("a")]);
    for _ in 0..3 {
        assert_eq!(embed(&bench).await, Ok(expected(&request())));
    }
    assert_eq!((instance.requests.load(Ordering::SeqCst), instance.connections.load(Ordering::SeqCst)), (3, 1));
    let demand = bench.demand();
    assert_eq!((demand.arrivals_total, demand.prompt_tokens_total, demand.output_tokens_total), (3, 12, 0));
    assert_eq!((demand.held, demand.in_flight, bench.gateway.active_requests()), (0, 0, 0));
    let record = bench.gateway.generation_records(1).remove(0);
    assert_eq!((record.outcome, record.prompt_tokens, record.instances), (Outcome::Finished, 4, vec!["a".to_owned()]));
}

#[tokio::test]
async fn what_one_instance_spoils_another_one_serves() {
    for trouble in [Move::Cut, Move::Short, Move::NoDimensions, Move::Status(500), Move::Status(503), Move::Status(404)]
    {
        let (bad, good) = (Instance::start([trouble]).await, Instance::start([]).await);
        let bench = Bench::new(options(), vec![bad.endpoint("a"), good.endpoint("b")]);
        assert_eq!(embed(&bench).await, Ok(expected(&request())), "{trouble:?}");
        assert_eq!((bad.requests.load(Ordering::SeqCst), good.requests.load(Ordering::SeqCst)), (1, 1), "{trouble:?}");
        let demand = bench.demand();
        assert_eq!((demand.arrivals_total, demand.prompt_tokens_total), (1, 4), "counted once: {trouble:?}");
        let record = bench.gateway.generation_records(1).remove(0);
        assert_eq!((record.outcome, record.instances.len()), (Outcome::Finished, 2), "{trouble:?}");
    }
}

#[tokio::test]
async fn a_wrong_request_is_refused_at_once() {
    let instance = Instance::start([Move::Status(400)]).await;
    let bench = Bench::new(options(), vec![instance.endpoint("a")]);
    let refusal = ApiError::InvalidRequest { message: "told to".to_owned(), param: Some("texts".to_owned()) };
    assert_eq!(embed(&bench).await, Err(refusal));
    assert_eq!(instance.requests.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_instance_that_only_breaks_is_given_up() {
    let instance = Instance::start(vec![Move::Cut; 9]).await;
    let bench = Bench::new(options(), vec![instance.endpoint("a")]);
    let error = embed(&bench).await.expect_err("no vectors");
    assert!(matches!(&error, ApiError::Unavailable { message, .. } if message.contains("attempts")), "{error}");
    assert_eq!(instance.requests.load(Ordering::SeqCst), 5);
}

#[tokio::test]
async fn a_request_at_zero_is_held_until_there_is_an_instance() {
    let (instance, bench) = (Instance::start([]).await, Bench::new(options(), Vec::new()));
    let gateway = bench.gateway.clone();
    let waiting = tokio::spawn(async move { gateway.embed(context(Duration::from_secs(20)), request()).await });
    bench.gateway.demand_changed().await;
    assert_eq!((bench.demand().held, bench.demand().arrivals_total), (1, 1));
    bench.publish(vec![instance.endpoint("a")]);
    assert_eq!(waiting.await.unwrap(), Ok(expected(&request())));
    assert!(bench.gateway.generation_records(1)[0].hold_ms > 0.0);
}

#[tokio::test]
async fn the_hold_is_bounded_in_number_and_time() {
    let options = GatewayOptions { hold_limit: 1, hold_timeout: Duration::from_millis(100), ..options() };
    let bench = Bench::new(options, Vec::new());
    let gateway = bench.gateway.clone();
    let first = tokio::spawn(async move { gateway.embed(context(Duration::from_secs(20)), request()).await });
    bench.gateway.demand_changed().await;
    assert!(matches!(embed(&bench).await, Err(ApiError::QueueFull { limit: 1, .. })));
    assert!(matches!(first.await.unwrap(), Err(ApiError::Unavailable { .. })));
    let late = bench.gateway.embed(context(Duration::from_millis(20)), request()).await;
    assert!(matches!(late, Err(ApiError::DeadlineExceeded { deadline_ms: 20, .. })), "{late:?}");
    assert_eq!((bench.demand().held, bench.gateway.active_requests()), (0, 0));
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_instance() {
    let instance = Instance::start([Move::Hang]).await;
    let bench = Bench::new(options(), vec![instance.endpoint("a")]);
    let gateway = bench.gateway.clone();
    let leaving = tokio::spawn(async move { gateway.embed(context(Duration::from_secs(20)), request()).await });
    eventually("the instance is asked", || instance.requests.load(Ordering::SeqCst) == 1).await;
    leaving.abort();
    eventually("its connection is closed", || instance.abandoned.load(Ordering::SeqCst) == 1).await;
    eventually("the books are closed", || bench.gateway.active_requests() == 0).await;
    assert_eq!(bench.gateway.generation_records(1)[0].outcome, Outcome::Cancelled);
    assert_eq!((bench.demand().held, bench.demand().in_flight), (0, 0));
}

#[tokio::test]
async fn unknown_models_and_a_gateway_that_ends_are_said_so() {
    let (_routes, receiver) = watch::channel(table(Vec::new()));
    let gateway = Gateway::new(options(), receiver);
    let unknown = EmbedRequest { model: "other".to_owned(), ..request() };
    let answer = gateway.embed(context(Duration::from_secs(1)), unknown).await;
    assert_eq!(answer, Err(ApiError::ModelNotFound { model: "other".to_owned() }));
    gateway.drain();
    assert_eq!(gateway.embed(context(Duration::from_secs(1)), request()).await, Err(ApiError::ShuttingDown));
}
