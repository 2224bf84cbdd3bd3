//! The gateway behind the real HTTP layer: what is counted, what is refused and how, what is remembered.

mod common;

use common::{Bench, context, options, request};
use controller_gateway::GatewayOptions;
use engine_http::{AccessOutcome, AccessRecord, ApiError, Backend, Limits, RouteOptions, ServeOptions};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn ask(addr: std::net::SocketAddr, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let length = body.len();
    let text = format!("{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn every_request_is_counted_and_generations_are_recorded() {
    let options = GatewayOptions { load_text: GatewayOptions::default().load_text, ..options() };
    let gateway = Bench::new(options, vec![]);
    let routes = engine_http::routes(
        gateway.gateway.clone(),
        RouteOptions { limits: Limits::default(), access: gateway.gateway.access_hook() },
    );
    let counted = gateway.gateway.counted(engine_http::with_fallback(routes, Limits::default()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(engine_http::serve(
        listener,
        counted,
        async { stopped.await.unwrap_or_default() },
        ServeOptions::default(),
    ));
    let no_file = r#"{"model":"m","prompt":"hi"}"#;
    for (head, body, wanted) in [
        ("GET /v1/models", "", ["200 OK", "\"r1\""]),
        ("GET /readyz", "", ["200 OK", "ready"]),
        ("GET /nowhere", "", ["404 Not Found", "not_found"]),
        ("POST /v1/completions", "{", ["400 Bad Request", "error"]),
        ("POST /v1/completions", r#"{"model":"other","prompt":"hi"}"#, ["404 Not Found", "model_not_found"]),
        // The model's file does not exist: the answer names it.
        ("POST /v1/completions", no_file, ["500 Internal Server Error", "/nowhere.gguf"]),
    ] {
        let answer = ask(addr, head, body).await;
        assert!(wanted.iter().all(|wanted| answer.contains(wanted)), "{head} {body}: {answer}");
    }
    assert_eq!(gateway.gateway.http_requests_total(), 6);
    let statuses: Vec<u16> = gateway.gateway.access_records(9).iter().map(|entry| entry.access.status).collect();
    assert_eq!(statuses, [500, 404, 400], "newest first, generation requests only");
    gateway.gateway.drain();
    assert!(ask(addr, "GET /readyz", "").await.contains("503 Service Unavailable"));
    drop(stop);
    serving.await.unwrap();
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let bench = Bench::new(GatewayOptions { hold_limit: 0, ..options() }, vec![]);
    let context = context(Duration::from_secs(9));
    let error = bench.gateway.generate(context.clone(), request(1, 1)).await.err().unwrap();
    assert!(matches!(error, ApiError::QueueFull { .. }));
    let response = engine_http::error_response(&error, &context);
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()), (429, "5"));
}

#[tokio::test]
async fn a_request_is_joined_with_its_generations() {
    let engine = common::engine::Engine::start([]).await;
    let bench = Bench::new(options(), vec![common::endpoint("a", &engine)]);
    let (first, second) = (context(Duration::from_secs(9)), context(Duration::from_secs(9)));
    for (context, max_tokens) in [(&first, 1), (&first, 2), (&second, 3)] {
        common::collect(bench.gateway.generate(context.clone(), request(1, max_tokens)).await.unwrap()).await;
    }
    let hook = bench.gateway.access_hook();
    for context in [&first, &second] {
        hook(AccessRecord {
            request_id: context.request_id.clone(),
            model: "m".to_owned(),
            tenant: context.tenant.clone(),
            peer: None,
            arrived_at_ns: context.arrived_at_ns,
            first_token_write_ns: None,
            last_token_write_ns: None,
            last_write_ns: None,
            status: 200,
            stream: true,
            prompt_tokens: 2,
            cached_tokens: 0,
            output_tokens: 3,
            finish: None,
            outcome: AccessOutcome::Finished,
        });
    }
    let entries = bench.gateway.access_records(9);
    let lengths = |index: usize| {
        let mut lengths: Vec<u32> = entries[index].generations.iter().map(|record| record.output_tokens).collect();
        lengths.sort_unstable();
        lengths
    };
    // The same request id twice: the time of arrival tells them apart.
    assert_eq!((lengths(0), lengths(1)), (vec![3], vec![1, 2]));
    let json = serde_json::to_value(&entries[0]).unwrap();
    assert_eq!(
        (json["request_id"].as_str(), json["generations"][0]["instances"][0].as_str()),
        (Some("req-1"), Some("a"))
    );
}
