//! A client over a plain socket that notes when it read the first byte, the first token and the last byte.

use crate::server::now_ns;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Just after the client read them; 0 where there was none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub sent_ns: u64,
    pub first_byte_ns: u64,
    pub first_token_ns: u64,
    pub last_byte_ns: u64,
    pub request_bytes: u64,
    pub response_bytes: u64,
}

pub struct Client {
    pub stream: TcpStream,
    pub connect_ns: u64,
}

impl Client {
    pub fn connect(server: SocketAddr) -> Self {
        let connect_ns = now_ns();
        let stream = TcpStream::connect_timeout(&server, Duration::from_secs(5)).expect("connect");
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        Self { stream, connect_ns }
    }

    /// The same from an address that was used before.
    pub fn connect_from(from: SocketAddr, server: SocketAddr) -> Self {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
        let end = socket(AddressFamily::INET, SocketType::STREAM, None).expect("socket");
        sockopt::set_socket_reuseaddr(&end, true).expect("reuse");
        bind(&end, &from).expect("bind");
        let connect_ns = now_ns();
        connect(&end, &server).expect("connect");
        let stream = TcpStream::from(end);
        stream.set_nodelay(true).expect("nodelay");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("timeout");
        Self { stream, connect_ns }
    }

    /// Ends the connection by a reset.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.stream, Some(Duration::ZERO)).expect("linger");
    }

    /// As the server and the kernel name this end.
    pub fn address(&self) -> SocketAddr {
        self.stream.local_addr().expect("address")
    }

    /// Sends a request in the given pieces, and reads its answer.
    pub fn request(&mut self, pieces: &[&[u8]]) -> Seen {
        let sent_ns = now_ns();
        for (i, piece) in pieces.iter().enumerate() {
            if i > 0 {
                std::thread::sleep(Duration::from_millis(3));
            }
            self.stream.write_all(piece).expect("write");
        }
        let request_bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        let mut seen = Seen { sent_ns, request_bytes, ..Seen::default() };
        self.receive(&mut seen);
        seen
    }

    /// Sends, and does not wait.
    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("write");
    }

    /// Reads one answer.
    pub fn receive(&mut self, seen: &mut Seen) {
        let mut answer = Vec::new();
        let mut buffer = [0; 65536];
        while !complete(&answer) {
            let n = self.stream.read(&mut buffer).expect("read");
            let now = now_ns();
            if n == 0 {
                break;
            }
            answer.extend_from_slice(&buffer[..n]);
            if seen.first_byte_ns == 0 {
                seen.first_byte_ns = now;
            }
            if seen.first_token_ns == 0 && has_token(&answer) {
                seen.first_token_ns = now;
            }
            seen.last_byte_ns = now;
        }
        seen.response_bytes = answer.len() as u64;
    }

    pub fn post(&mut self, path: &str) -> Seen {
        self.request(&[
            format!("POST {path}?secret=1 HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\nprompt").as_bytes()
        ])
    }
}

fn has_token(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    text.contains("\"content\":\"H") || text.contains("\"tokens\":[17]")
}

fn complete(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let Some(end) = text.find("\r\n\r\n") else { return false };
    let head = text[..end].to_ascii_lowercase();
    if head.contains("chunked") {
        return text.ends_with("\r\n0\r\n\r\n");
    }
    if head.contains(" 204 ") {
        return true;
    }
    let Some((_, rest)) = head.split_once("content-length: ") else { return false };
    let length: usize = rest.lines().next().and_then(|line| line.trim().parse().ok()).expect("a length");
    answer.len() >= end + 4 + length
}
