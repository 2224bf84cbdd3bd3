//! Requests that are sent before the answers to those before them: counted exactly, and each with its own answer.

use super::{attach, client::Client, settled, start};
use crate::server::{Step, script};
use controller_witness::{PortRole, RequestEnd, Witness, WitnessOptions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::time::Duration;

/// A request for `path` with a body.
fn request(path: &str, body: &str) -> String {
    format!("POST {path}?secret=1 HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

/// Bytes and status of the answer to a path.
fn answer(path: &str) -> (u64, u16) {
    let steps = script(path);
    let bytes = steps.iter().map(|step| match step {
        Step::Write(text) | Step::Token(text) => text.len() as u64,
        Step::Sleep(_) | Step::Close => 0,
    });
    (bytes.sum(), if path == "/missing" { 404 } else { 200 })
}

/// Sends these requests in these pieces on one connection, reads all answers, and compares the records with both.
async fn check(witness: &Witness, requests: &[(&str, String)], pieces: &[&[u8]]) {
    let (server, log) = start(witness, "127.0.0.1:0");
    let mut client = Client::connect(server);
    for piece in pieces {
        client.send(piece);
        std::thread::sleep(Duration::from_millis(2));
    }
    let total: u64 = requests.iter().map(|(path, _)| answer(path).0).sum();
    let mut answers = vec![0; total as usize];
    client.stream.read_exact(&mut answers).expect("all answers");
    let n = requests.len() as u64;
    let counts = settled(witness, server.port(), |c| c.ended == n).await;
    assert_eq!((counts.requests, counts.ended, counts.in_flight), (n, n, 0), "{} pieces: {counts:?}", pieces.len());
    let mut last_ns = 0;
    for (sequence, (path, text)) in (0..).zip(requests) {
        let record = witness.find(client.address(), sequence).expect("a record");
        let at = format!("{path} {record:?}");
        assert_eq!((record.end, record.line.as_str()), (RequestEnd::Complete, &*format!("POST {path}")), "{at}");
        assert_eq!(record.request_bytes, text.len() as u64, "{at}");
        assert_eq!((record.response_bytes, record.status), answer(path), "{at}");
        let written = log.lock().expect("log")[&(client.address(), sequence)];
        assert!(written.first_byte_ns <= record.first_byte_ns && written.last_byte_ns <= record.last_byte_ns, "{at}");
        assert!(last_ns <= record.first_byte_ns && record.start_ns <= record.first_byte_ns, "{at}");
        assert_eq!(record.first_token_ns != 0, written.first_token_ns != 0, "{at}");
        assert!(written.first_token_ns <= record.first_token_ns && !at.contains("secret"), "{at}");
        last_ns = record.last_byte_ns;
    }
    witness.unwatch(server.port());
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_counted_and_answered_one_by_one() {
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    let paths = ["/missing", "/chat", "/missing", "/missing", "/hop", "/packed", "/missing", "/chat", "/missing"];
    let short: Vec<(&str, String)> = paths.iter().map(|&path| (path, request(path, r#"{"model":"m"}"#))).collect();
    let all: String = short.iter().map(|(_, text)| text.as_str()).collect();
    let each: Vec<&[u8]> = short.iter().map(|(_, text)| text.as_bytes()).collect();
    check(&witness, &short, &[all.as_bytes()]).await;
    check(&witness, &short, &each).await;
    check(&witness, &short, &all.as_bytes().chunks(37).collect::<Vec<_>>()).await;
    // Bodies beyond what the kernel tells, with pieces that begin like requests and are none.
    let body = format!("{}POST /inner HTTP/1.1\r\n\r\n", "x".repeat(5000));
    let long: Vec<(&str, String)> = paths.iter().map(|&path| (path, request(path, &body))).collect();
    let mut pieces: Vec<&[u8]> = Vec::new();
    for (_, text) in &long {
        let (front, inner) = text.as_bytes().split_at(text.len() - 24);
        pieces.extend([front, inner]);
    }
    check(&witness, &long, &pieces).await;
    assert_eq!((witness.events_lost(), witness.events_malformed()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_goes_on_after_its_answer_is_no_request() {
    const EARLY: &[u8] = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno";
    const PIECE: &[u8] = b"POST /inner HTTP/1.1\r\n\r\n";
    let Some(witness) = attach(WitnessOptions::default()) else { return };
    for interim in [&b""[..], b"HTTP/1.1 100 Continue\r\n\r\n"] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let server = listener.local_addr().expect("address");
        witness.watch(server.port(), PortRole::Gateway).expect("watch");
        let mut client = Client::connect(server);
        let (mut stream, _) = listener.accept().expect("accept");
        let head = format!("POST /big HTTP/1.1\r\nContent-Length: {}\r\n\r\n", 4 * PIECE.len());
        for _ in 0..2 {
            client.send(head.as_bytes());
            stream.read_exact(&mut vec![0; head.len()]).expect("a head");
            let first = if interim.is_empty() { EARLY } else { interim };
            stream.write_all(first).expect("write");
            client.stream.read_exact(&mut vec![0; first.len()]).expect("an answer");
            for _ in 0..4 {
                client.send(PIECE);
                stream.read_exact(&mut [0; PIECE.len()]).expect("a piece");
            }
            if !interim.is_empty() {
                stream.write_all(EARLY).expect("write");
                client.stream.read_exact(&mut [0; EARLY.len()]).expect("an answer");
            }
        }
        drop((client, stream));
        let counts = settled(&witness, server.port(), |c| c.closed == 1 && c.ended == 2).await;
        assert_eq!((counts.requests, counts.ended, counts.in_flight), (2, 2, 0), "{interim:?} {counts:?}");
        for (i, record) in witness.recent(2).iter().rev().enumerate() {
            assert_eq!(
                (record.sequence, record.status, record.end),
                (i as u32, 413, RequestEnd::Complete),
                "{record:?}"
            );
            assert_eq!(record.response_bytes, (interim.len() + EARLY.len()) as u64, "{record:?}");
        }
    }
    assert_eq!(witness.events_lost(), 0);
}
