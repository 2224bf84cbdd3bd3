//! A peer that speaks the hop over real sockets and misbehaves to order. It is the hostile side of the seam:
//! the black-box tests use real engines, but those cannot be made to die at an exact byte.

use engine_wire::hop::{FinishReason, GENERATE_PATH, GenerateRequest, HopEvent, TokenLogprobs};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// What the engine does with one request. Counts are tokens sent in this attempt before it happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    Serve,
    /// Closes the connection in good order.
    Close(usize),
    /// Closes it in the middle of an event's line.
    CloseInLine(usize),
    /// Ends the stream properly, but without an end event.
    EndEarly(usize),
    Garbage(usize),
    Failed(usize, u16),
    Stall(usize),
    /// Sends one more token than was asked for, at the end.
    TooMany,
    /// All tokens, and then dies before the end event.
    CloseBeforeEnd,
    Status(u16),
    /// Waits for `release` before it sends anything.
    Gate,
}

pub struct Engine {
    pub addr: SocketAddr,
    pub moves: Mutex<VecDeque<Move>>,
    /// First prompt token of each request, in order of their arrival.
    pub seen: Mutex<Vec<u32>>,
    pub headers: Mutex<Vec<String>>,
    pub connections: AtomicUsize,
    /// Connections that the peer closed while an answer was under way.
    pub abandoned: AtomicUsize,
    pub gate: Semaphore,
    /// Close each connection after its first answer without saying so.
    pub hang_up: std::sync::atomic::AtomicBool,
}

/// The token at `position` of the output for this prompt: every engine computes the same one.
pub fn token_at(prompt: &[u32], position: usize) -> u32 {
    let seed = prompt.iter().fold(17u32, |hash, token| hash.wrapping_mul(31).wrapping_add(*token));
    (seed.wrapping_mul(2654435761).wrapping_add(position as u32 * 40503) >> 7) % 50_000 + 10
}

pub fn expected(prompt: &[u32], max_tokens: usize) -> Vec<u32> {
    (0..max_tokens).map(|position| token_at(prompt, position)).collect()
}

impl Engine {
    pub async fn start(moves: impl IntoIterator<Item = Move>) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let engine = Arc::new(Self {
            addr: listener.local_addr().unwrap(),
            moves: Mutex::new(moves.into_iter().collect()),
            seen: Mutex::default(),
            headers: Mutex::default(),
            connections: AtomicUsize::new(0),
            abandoned: AtomicUsize::new(0),
            gate: Semaphore::new(0),
            hang_up: false.into(),
        });
        let serving = engine.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                serving.connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serving.clone().connection(stream));
            }
        });
        engine
    }

    pub fn requests(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    async fn connection(self: Arc<Self>, mut stream: TcpStream) {
        stream.set_nodelay(true).unwrap();
        let mut buffer = Vec::new();
        while let Some(request) = self.read_request(&mut stream, &mut buffer).await {
            self.seen.lock().unwrap().push(request.prompt[0]);
            let next = self.moves.lock().unwrap().pop_front().unwrap_or(Move::Serve);
            let mut writer = Writer(&stream);
            let kept = tokio::select! {
                kept = self.answer(&mut writer, &request, next) => kept,
                () = closed_by_peer(&stream) => {
                    self.abandoned.fetch_add(1, Ordering::SeqCst);
                    return;
                }
            };
            if !kept || self.hang_up.load(Ordering::SeqCst) {
                return;
            }
        }
    }

    async fn read_request(&self, stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<GenerateRequest> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
                assert!(head.starts_with(&format!("POST {GENERATE_PATH} HTTP/1.1\r\n")), "{head}");
                let length = header(&head, "content-length").parse::<usize>().unwrap();
                if buffer.len() >= end + 4 + length {
                    let request = serde_json::from_slice(&buffer[end + 4..end + 4 + length]).unwrap();
                    buffer.drain(..end + 4 + length);
                    self.headers.lock().unwrap().push(head);
                    return Some(request);
                }
            }
            match stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return None,
                Ok(read) => buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }

    /// Answers one request; whether the connection stays open.
    async fn answer(&self, stream: &mut Writer<'_>, request: &GenerateRequest, next: Move) -> bool {
        if let Move::Status(status) = next {
            return stream.status(status, "told to").await;
        }
        let done = request.emitted.len();
        if request.emitted != expected(&request.prompt, done) {
            return stream.status(400, "emitted is not what was sent").await;
        }
        if next == Move::Gate {
            self.gate.acquire().await.unwrap().forget();
        }
        stream.head().await;
        let max = request.stop.max_tokens as usize;
        for position in done..max {
            if let Some(kept) = stream.misbehave(&next, position - done).await {
                return kept;
            }
            let tokens = vec![token_at(&request.prompt, position)];
            let event = match request.top_logprobs {
                None => HopEvent::Tokens(tokens),
                Some(_) => HopEvent::Scored {
                    tokens,
                    logprobs: vec![TokenLogprobs { logprob: -(position as f32), top: vec![] }],
                },
            };
            stream.event(&event).await;
        }
        if let Some(kept) = stream.misbehave(&next, max - done).await {
            return kept;
        }
        match next {
            Move::CloseBeforeEnd => return false,
            Move::TooMany => stream.event(&HopEvent::Tokens(vec![1])).await,
            _ => {}
        }
        stream.event(&HopEvent::Finished { reason: FinishReason::Length, cached_tokens: 3 }).await;
        stream.raw(b"data: [DONE]\n\n").await;
        stream.end().await
    }
}

pub fn header(head: &str, name: &str) -> String {
    let line = head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
    line.unwrap_or_else(|| panic!("no {name} in {head}")).split_once(':').unwrap().1.trim().to_owned()
}

async fn closed_by_peer(stream: &TcpStream) {
    let mut byte = [0; 1];
    loop {
        match stream.peek(&mut byte).await {
            Ok(0) | Err(_) => return,
            // A request that came early would spin here; the gateway never pipelines.
            Ok(_) => tokio::time::sleep(std::time::Duration::from_millis(1)).await,
        }
    }
}

struct Writer<'a>(&'a TcpStream);

impl Writer<'_> {
    async fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.0.writable().await.is_err() {
                return;
            }
            match self.0.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }

    async fn head(&mut self) {
        self.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n").await;
    }

    /// One chunk.
    async fn raw(&mut self, bytes: &[u8]) {
        let mut chunk = format!("{:x}\r\n", bytes.len()).into_bytes();
        chunk.extend_from_slice(bytes);
        chunk.extend_from_slice(b"\r\n");
        self.write(&chunk).await;
    }

    async fn event(&mut self, event: &HopEvent) {
        self.raw(format!("data: {}\n\n", serde_json::to_string(event).unwrap()).as_bytes()).await;
    }

    async fn end(&mut self) -> bool {
        self.write(b"0\r\n\r\n").await;
        true
    }

    async fn status(&mut self, status: u16, message: &str) -> bool {
        let body = format!(r#"{{"error":{{"message":"{message}","type":"x","param":null,"code":"draining"}}}}"#);
        let head =
            format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        self.write(format!("{head}{body}").as_bytes()).await;
        true
    }

    /// Does what `next` says once `sent` tokens are out; `Some(kept)` when that ends the answer.
    async fn misbehave(&mut self, next: &Move, sent: usize) -> Option<bool> {
        match next {
            Move::Close(at) if *at == sent => Some(false),
            Move::CloseInLine(at) if *at == sent => {
                self.raw(b"data: {\"tokens\":[12").await;
                Some(false)
            }
            Move::EndEarly(at) if *at == sent => Some(self.end().await),
            Move::Garbage(at) if *at == sent => {
                self.raw(b"data: {\"tokens\":[\"x\"]}\n\n").await;
                Some(self.end().await)
            }
            Move::Failed(at, status) if *at == sent => {
                let (code, message) = ("draining".to_owned(), "told to fail".to_owned());
                self.event(&HopEvent::Failed { status: *status, code, message }).await;
                Some(self.end().await)
            }
            Move::Stall(at) if *at == sent => std::future::pending().await,
            _ => None,
        }
    }
}
