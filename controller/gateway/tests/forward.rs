//! Requests that are passed on as they came, over real sockets to servers that behave and misbehave by script.

mod common;

use bytes::Bytes;
use common::{MODEL, context, eventually, options, route};
use controller_gateway::{Endpoint, Gateway, GatewayOptions, ModelRoute, RouteTable};
use engine_http::{ApiError, Backend, ForwardPart, ForwardRequest, ForwardUsage, Forwarded};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

const HEAD: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
const HI: &str = "data: {\"choices\":[{\"delta\":{\"content\":\"Hi\"}}]}\n\n";
const DONE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2}}\n\ndata: [DONE]\n\n";

/// What a server does with a request.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// Two tokens and their end.
    Stream,
    /// One token, then the connection is cut.
    DieAfterToken,
    /// The head of an answer, then the connection is cut.
    DieAfterHead,
    /// Cut without a byte.
    Die,
    Status(u16),
    /// One token, then nothing until the peer goes.
    Hang,
}

/// A server that does the acts in turn, the last one for ever.
struct Server {
    addr: SocketAddr,
    asked: Arc<AtomicUsize>,
    /// Peers that left a hanging answer.
    left: Arc<AtomicUsize>,
}

impl Server {
    async fn new(acts: &'static [Act]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let server = Self { addr, asked: Arc::default(), left: Arc::default() };
        let (asked, left) = (server.asked.clone(), server.left.clone());
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(serve(socket, acts, asked.clone(), left.clone()));
            }
        });
        server
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn endpoint(&self, instance: &str) -> Endpoint {
        Endpoint { instance: instance.to_owned(), addr: self.addr, ready: true }
    }
}

async fn serve(mut socket: TcpStream, acts: &[Act], asked: Arc<AtomicUsize>, left: Arc<AtomicUsize>) {
    let mut read = Vec::new();
    while socket.read_buf(&mut read).await.is_ok_and(|bytes| bytes > 0) {
        // The tests' bodies are short and end so.
        if !read.ends_with(b"\"}") {
            continue;
        }
        assert!(read.starts_with(b"POST /v1/completions HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&read));
        read.clear();
        let turn = asked.fetch_add(1, Ordering::SeqCst);
        let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
        let answer = match acts[turn.min(acts.len() - 1)] {
            Act::Stream => format!("{HEAD}{}{}{}0\r\n\r\n", chunk(HI), chunk(HI), chunk(DONE)),
            Act::DieAfterToken | Act::Hang => format!("{HEAD}{}", chunk(HI)),
            Act::DieAfterHead => HEAD.to_owned(),
            Act::Die => String::new(),
            Act::Status(status) => {
                format!(
                    "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{{\"s\":{status}}}"
                )
            }
        };
        socket.write_all(answer.as_bytes()).await.unwrap();
        match acts[turn.min(acts.len() - 1)] {
            Act::DieAfterToken | Act::DieAfterHead | Act::Die => return,
            Act::Hang => {
                let _ = socket.read_buf(&mut read).await;
                left.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Act::Stream | Act::Status(_) => {}
        }
    }
}

fn table(endpoints: Vec<Endpoint>) -> Arc<RouteTable> {
    let route = ModelRoute { engine: Some("custom".to_owned()), ..(*route("r1")).clone() };
    let mut table = RouteTable::default();
    table.models.insert(MODEL.to_owned(), Arc::new(route));
    table.endpoints.insert(MODEL.to_owned(), endpoints);
    Arc::new(table)
}

fn gateway(options: GatewayOptions, endpoints: Vec<Endpoint>) -> (Gateway, watch::Sender<Arc<RouteTable>>) {
    let (routes, receiver) = watch::channel(table(endpoints));
    (Gateway::new(options, receiver), routes)
}

async fn ask(gateway: &Gateway) -> Result<Forwarded, ApiError> {
    let body = Bytes::from_static(b"{\"model\": \"m\", \"stream\": true, \"prompt\": \"x\"}");
    let request = ForwardRequest { path: "/v1/completions", model: MODEL.to_owned(), stream: true, body };
    gateway.forward(context(Duration::from_secs(20)), request).await
}

/// All that came: bytes, and how it ended.
#[derive(Debug, Default, PartialEq)]
struct Came {
    status: u16,
    text: String,
    usage: Option<ForwardUsage>,
    error: Option<String>,
}

async fn collect(gateway: &Gateway) -> Came {
    let mut came = Came { status: 200, ..Came::default() };
    let mut parts = match ask(gateway).await {
        Err(error) => return Came { status: error.status().as_u16(), error: Some(error.to_string()), ..came },
        Ok(Forwarded::Whole(whole)) => {
            let text = String::from_utf8(whole.body.to_vec()).unwrap();
            return Came { status: whole.status, text, usage: Some(whole.usage), error: None };
        }
        Ok(Forwarded::Stream(parts)) => parts,
    };
    while let Some(part) = parts.recv().await {
        assert!(came.usage.is_none() && came.error.is_none(), "{part:?} after the end");
        match part {
            Ok(ForwardPart::Waiting) => {}
            Ok(ForwardPart::Events { bytes, .. }) => came.text.push_str(std::str::from_utf8(&bytes).unwrap()),
            Ok(ForwardPart::End(usage)) => came.usage = Some(usage),
            Err(error) => came.error = Some(error.to_string()),
        }
    }
    came
}

fn whole_stream() -> Came {
    let usage = ForwardUsage { prompt_tokens: 7, cached_tokens: 0, output_tokens: 2 };
    Came { status: 200, text: format!("{HI}{HI}{DONE}"), usage: Some(usage), error: None }
}

#[tokio::test]
async fn a_stream_comes_as_it_was_given_and_is_counted() {
    let server = Server::new(&[Act::Stream]).await;
    let (gateway, routes) = gateway(options(), vec![server.endpoint("i-1")]);
    assert_eq!(gateway.forwarded().iter().collect::<Vec<_>>(), [MODEL]);
    for _ in 0..2 {
        assert_eq!(collect(&gateway).await, whole_stream());
    }
    let demand = gateway.demand().remove(MODEL).unwrap();
    assert_eq!((demand.arrivals_total, demand.prompt_tokens_total, demand.output_tokens_total), (2, 14, 4));
    let load = gateway.load("i-1").unwrap();
    assert_eq!((load.running, load.requests_total, load.cancelled_total), (0, 2, 0));
    assert_eq!((load.prompt_tokens_total, load.output_tokens_total), (14, 4));
    assert!(!load.busy.is_zero());
    let records = gateway.generation_records(9);
    assert!(records.iter().all(|record| record.output_tokens == 2 && record.ttft_ms.is_some()), "{records:?}");
    routes.send_replace(table(Vec::new()));
    eventually("nothing is known of it", || gateway.load("i-1").is_none()).await;
}

/// One server that fails first, and one that never does.
async fn check_retried(acts: &'static [Act], asked: usize) {
    let (bad, good) = (Server::new(acts).await, Server::new(&[Act::Stream]).await);
    let (gateway, _routes) = gateway(options(), vec![bad.endpoint("i-1"), good.endpoint("i-2")]);
    assert_eq!(collect(&gateway).await, whole_stream(), "{acts:?}");
    assert_eq!((bad.asked(), good.asked()), (asked, 1), "{acts:?}");
}

#[tokio::test]
async fn before_the_first_byte_another_instance_is_asked() {
    check_retried(&[Act::Die], 1).await;
    check_retried(&[Act::DieAfterHead], 1).await;
    check_retried(&[Act::Status(500)], 1).await;
    check_retried(&[Act::Status(503)], 1).await;
    check_retried(&[Act::Status(429)], 1).await;
}

/// One server alone: what the client gets, and how often the server was asked.
async fn check_alone(acts: &'static [Act], expected: Came, asked: usize) {
    let server = Server::new(acts).await;
    let (gateway, _routes) = gateway(options(), vec![server.endpoint("i-1")]);
    assert_eq!((collect(&gateway).await, server.asked()), (expected, asked), "{acts:?}");
}

#[tokio::test]
async fn what_an_engine_answers_is_the_answer() {
    let status = |status: u16| Came {
        status,
        text: format!("{{\"s\":{status}}}"),
        usage: Some(ForwardUsage::default()),
        error: None,
    };
    for (acts, code) in [(&[Act::Status(400)], 400), (&[Act::Status(404)], 404), (&[Act::Status(501)], 501)] {
        check_alone(acts, status(code), 1).await;
    }
    check_alone(&[Act::Status(500)], status(500), 3).await;
    check_alone(&[Act::Status(500), Act::Stream], whole_stream(), 2).await;
    check_alone(&[Act::Status(503), Act::Status(429), Act::Stream], whole_stream(), 3).await;
    check_alone(&[Act::Die, Act::Stream], whole_stream(), 2).await;
}

#[tokio::test]
async fn after_the_first_byte_nobody_else_goes_on() {
    let (bad, good) = (Server::new(&[Act::DieAfterToken]).await, Server::new(&[Act::Stream]).await);
    let (gateway, _routes) = gateway(options(), vec![bad.endpoint("i-1"), good.endpoint("i-2")]);
    let came = collect(&gateway).await;
    assert_eq!((came.text.as_str(), came.usage, good.asked()), (HI, None, 0));
    assert!(came.error.as_ref().is_some_and(|error| error.contains("broke off in the middle")), "{came:?}");
    let load = gateway.load("i-1").unwrap();
    assert_eq!((load.running, load.requests_total, load.cancelled_total, load.output_tokens_total), (0, 1, 1, 1));
    // The next one goes where it is served.
    assert_eq!(collect(&gateway).await, whole_stream());
}

#[tokio::test]
async fn silence_in_mid_stream_ends_it() {
    let quick = GatewayOptions { stall_timeout: Duration::from_millis(50), ..options() };
    let server = Server::new(&[Act::Hang]).await;
    let (gateway, _routes) = gateway(quick, vec![server.endpoint("i-1")]);
    let came = collect(&gateway).await;
    assert!(came.error.as_ref().is_some_and(|error| error.contains("nothing came for")), "{came:?}");
    eventually("the connection is closed", || server.left.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_work_along() {
    let server = Server::new(&[Act::Hang]).await;
    let (gateway, _routes) = gateway(options(), vec![server.endpoint("i-1")]);
    let Ok(Forwarded::Stream(mut parts)) = ask(&gateway).await else { panic!() };
    assert!(matches!(parts.recv().await, Some(Ok(ForwardPart::Events { tokens: 1, .. }))));
    assert_eq!(gateway.load("i-1").unwrap().running, 1);
    drop(parts);
    eventually("the engine sees it", || server.left.load(Ordering::SeqCst) == 1).await;
    eventually("nothing runs", || gateway.load("i-1").is_some_and(|load| load.running == 0)).await;
}

#[tokio::test]
async fn held_at_zero_it_says_that_it_waits() {
    let patient = GatewayOptions { forward_waiting_interval: Duration::from_millis(20), ..options() };
    let server = Server::new(&[Act::Stream]).await;
    let (gateway, routes) = gateway(patient, Vec::new());
    let Ok(Forwarded::Stream(mut parts)) = ask(&gateway).await else { panic!() };
    assert_eq!(parts.recv().await, Some(Ok(ForwardPart::Waiting)));
    assert_eq!(gateway.demand().remove(MODEL).unwrap().held, 1);
    routes.send_replace(table(vec![server.endpoint("i-1")]));
    let mut text = String::new();
    while let Some(part) = parts.recv().await {
        if let Ok(ForwardPart::Events { bytes, .. }) = part {
            text.push_str(std::str::from_utf8(&bytes).unwrap());
        }
    }
    assert_eq!(text, whole_stream().text);
}
