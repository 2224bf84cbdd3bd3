//! A small real HTTP server over plain sockets that writes each answer in exactly the pieces a test asks
//! for, and notes when it wrote them.

use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// CLOCK_MONOTONIC, ns: the clock of the kernel's times.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Just before the server wrote the first byte, the first token and the last byte of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    pub first_byte_ns: u64,
    pub first_token_ns: u64,
    pub last_byte_ns: u64,
}

/// By client and number of the request on its connection.
pub type Log = Arc<Mutex<HashMap<(SocketAddr, u32), Written>>>;

/// One thing a server does while it answers.
#[derive(Clone, Debug)]
pub enum Step {
    Write(String),
    /// A write that holds the first token.
    Token(String),
    Sleep(u64),
    /// Ends the connection without more.
    Close,
}

/// A chunk of a chunked body.
pub fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n", text.len())
}

const SSE_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
const ROLE: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n";
const FINISH: &str =
    "data: {\"id\":\"chatcmpl-1\",\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";

fn token(text: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-1\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}},\"finish_reason\":null}}]}}\n\n"
    )
}

/// What a path is answered with.
pub fn script(path: &str) -> Vec<Step> {
    use Step::{Close, Sleep, Token, Write};
    match path {
        "/chat" => {
            let mut steps = vec![
                Write(SSE_HEAD.into()),
                Write(chunk(": waiting\n\n")),
                Sleep(3),
                Write(format!("{}{}", chunk(": waiting\n\n"), chunk(ROLE))),
                Sleep(3),
                Token(chunk(&token("Hello"))),
            ];
            // More than the kernel tells one by one.
            steps.extend((0..20).flat_map(|_| [Sleep(1), Write(chunk(&token(" you")))]));
            steps.extend([Write(chunk(FINISH)), Write(chunk("data: [DONE]\n\n")), Write("0\r\n\r\n".into())]);
            steps
        }
        "/packed" => vec![
            Token(format!("{SSE_HEAD}{}{}", chunk(ROLE), chunk(&token("Hi")))),
            Sleep(2),
            Write(format!("{}{}0\r\n\r\n", chunk(FINISH), chunk("data: [DONE]\n\n"))),
        ],
        "/hop" => vec![
            Write(SSE_HEAD.into()),
            Sleep(2),
            Token(chunk("data: {\"tokens\":[17]}\n\n")),
            Sleep(2),
            Write(chunk("data: {\"finished\":{\"reason\":\"stop\",\"cached_tokens\":0}}\n\n")),
            Write("0\r\n\r".into()),
            Sleep(2),
            Write("\n".into()),
        ],
        "/whole" => vec![
            Write("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nContent-Length: 30000\r\n\r\n".into()),
            Sleep(2),
            Write("x".repeat(10_000)),
            Sleep(2),
            Write("data: y\n".repeat(2500)),
        ],
        "/missing" => vec![Write("HTTP/1.1 404 Not Found\r\ncontent-length: 2\r\n\r\nno".into())],
        "/empty" => vec![Write("HTTP/1.1 204 No Content\r\n\r\n".into())],
        "/cut" => vec![Write(SSE_HEAD.into()), Token(chunk(&token("Hello"))), Sleep(5), Close],
        "/endless" => {
            let mut steps = vec![Write(SSE_HEAD.into()), Token(chunk(&token("Hello")))];
            steps.extend((0..400).flat_map(|_| [Sleep(5), Write(chunk(&token("and")))]));
            steps
        }
        "/old" => vec![Write("HTTP/1.0 200 OK\r\n\r\nall of it".into()), Close],
        other => panic!("no script for {other}"),
    }
}

/// Serves on `listener` until the process ends.
pub fn serve(listener: TcpListener) -> Log {
    let log = Log::default();
    let theirs = log.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (log, stream) = (theirs.clone(), stream?);
            // A client that goes away in the middle is part of some tests.
            std::thread::spawn(move || drop(connection(stream, &log)));
        }
        std::io::Result::Ok(())
    });
    log
}

fn connection(stream: TcpStream, log: &Log) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let client = stream.peer_addr()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    for sequence in 0.. {
        let Some(path) = read_request(&mut reader)? else { return Ok(()) };
        let mut written = Written::default();
        for step in script(&path) {
            if !perform(&stream, &step, &mut written)? {
                log.lock().expect("log").insert((client, sequence), written);
                return Ok(());
            }
            log.lock().expect("log").insert((client, sequence), written);
        }
    }
    Ok(())
}

fn perform(mut stream: &TcpStream, step: &Step, written: &mut Written) -> std::io::Result<bool> {
    let text = match step {
        Step::Sleep(ms) => {
            std::thread::sleep(Duration::from_millis(*ms));
            return Ok(true);
        }
        Step::Close => return Ok(false),
        Step::Write(text) | Step::Token(text) => text,
    };
    let now = now_ns();
    if written.first_byte_ns == 0 {
        written.first_byte_ns = now;
    }
    if matches!(step, Step::Token(_)) {
        written.first_token_ns = now;
    }
    written.last_byte_ns = now;
    stream.write_all(text.as_bytes())?;
    Ok(true)
}

/// Reads a request with its body; the path, or None at the end of the connection.
fn read_request(reader: &mut BufReader<TcpStream>) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split([' ', '?']).nth(1).unwrap_or_default().to_owned();
    let mut body = 0;
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            body = value.trim().parse().expect("a length");
        }
    }
    std::io::copy(&mut reader.take(body), &mut std::io::sink())?;
    Ok(Some(path))
}
