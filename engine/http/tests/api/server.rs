//! The server under slow, silent and too many clients, and at its end.

use crate::checkpoint::ids;
use crate::support::{PATIENCE, Setup, Step, bare, post, says};
use engine_http::{AccessOutcome, ServeOptions};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::time::timeout;

const STREAM: &[u8] = br#"{"model":"tiny","prompt":"x","stream":true}"#;

fn options() -> ServeOptions {
    ServeOptions {
        header_read_timeout: Duration::from_millis(200),
        write_stall_timeout: Duration::from_millis(200),
        drain_deadline: Duration::from_millis(200),
        ..ServeOptions::default()
    }
}

/// Reads to the end, for connections that the server closes without an answer (or with a bare 408).
async fn closed(client: &mut crate::support::Client) {
    let mut bytes = Vec::new();
    timeout(PATIENCE, client.0.read_to_end(&mut bytes)).await.expect("the server closes").ok();
    assert!(!String::from_utf8_lossy(&bytes).contains("200 OK"));
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let server = Setup { serve: options(), ..Setup::default() }.start().await;
    let mut client = server.connect().await;
    client.send(b"GET /healthz HTTP/1.1\r\nhost:").await;
    closed(&mut client).await;
    let mut silent = server.connect().await;
    closed(&mut silent).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_given_up() {
    let mut server = Setup { serve: options(), scripts: vec![vec![Step::Flood]], ..Setup::default() }.start().await;
    let mut client = server.connect().await;
    client.send(&post("/v1/completions", "", STREAM)).await;
    server.cancelled().await;
    assert_eq!(server.record().await.outcome, AccessOutcome::Cancelled);
}

#[tokio::test]
async fn connections_are_kept_alive() {
    let server = Setup { scripts: vec![says("a"), says("b")], ..Setup::default() }.start().await;
    let mut client = server.connect().await;
    for text in ["a", "b"] {
        let body = std::str::from_utf8(STREAM).expect("text");
        let request =
            format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        client.send(request.as_bytes()).await;
        let seen = client.read_until("[DONE]\n\n\r\n0\r\n\r\n").await;
        assert!(seen.contains(&format!(r#""text":"{text}""#)), "{seen}");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let serve = ServeOptions { max_connections: 1, ..ServeOptions::default() };
    let server =
        Setup { serve, scripts: vec![vec![Step::Tokens(ids("a")), Step::Hang]], ..Setup::default() }.start().await;
    let mut first = server.connect().await;
    first.send(&post("/v1/completions", "", STREAM)).await;
    first.read_until("data:").await;
    let mut second = server.connect().await;
    second.send(&bare("GET", "/healthz")).await;
    // The second is in the backlog for as long as the first is served.
    let early = timeout(Duration::from_millis(100), second.0.readable()).await;
    assert!(early.is_err(), "answered beyond the limit");
    drop(first);
    assert_eq!(second.answer().await.status, 200);
}

#[tokio::test]
async fn a_shutdown_lets_streams_finish() {
    let script =
        vec![Step::Tokens(ids("a")), Step::Tokens(ids("b")), Step::Finish(engine_wire::hop::FinishReason::Length)];
    let serve = ServeOptions { drain_deadline: PATIENCE, ..ServeOptions::default() };
    let mut server = Setup { serve, scripts: vec![script], ..Setup::default() }.start().await;
    let mut client = server.connect().await;
    let mut idle = server.connect().await;
    idle.send(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    idle.read_until("ok\n").await;
    client.send(&post("/v1/completions", "", STREAM)).await;
    let seen = client.read_until("data:").await;
    server.stop();
    let rest = if seen.contains("[DONE]") { seen } else { seen + &client.read_until("[DONE]").await };
    assert!(rest.contains(r#""text":"b""#), "{rest}");
    server.stopped().await;
    closed(&mut idle).await;
}

#[tokio::test]
async fn a_shutdown_has_a_deadline() {
    let script = vec![Step::Tokens(ids("a")), Step::Hang];
    let mut server = Setup { serve: options(), scripts: vec![script], ..Setup::default() }.start().await;
    let mut client = server.connect().await;
    client.send(&post("/v1/completions", "", STREAM)).await;
    client.read_until("data:").await;
    server.stop();
    server.cancelled().await;
    server.stopped().await;
}
