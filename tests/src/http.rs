//! One HTTP/1.1 request per connection over a plain socket, bytes in and bytes out, so that a test can
//! send what no HTTP library would.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    /// Status line and headers, in lower case.
    pub head: String,
    /// The body with its framing taken off.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }

    /// A header's value; names in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
    }
}

/// `GET path`.
pub fn get(addr: SocketAddr, path: &str) -> Result<Answer> {
    request(addr, "GET", path, &[], b"")
}

/// `POST path` with a JSON body.
pub fn post_json(addr: SocketAddr, path: &str, body: &Value) -> Result<Answer> {
    request(addr, "POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
}

/// Any request with a body of known length.
pub fn request(addr: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    raw(addr, &[head.as_bytes(), body].concat())
}

/// Sends these very bytes and reads until the server closes (or 120 s pass without a byte).
pub fn raw(addr: SocketAddr, bytes: &[u8]) -> Result<Answer> {
    let mut socket =
        TcpStream::connect_timeout(&addr, Duration::from_secs(10)).with_context(|| format!("connecting to {addr}"))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(120)))?;
    socket.set_write_timeout(Some(Duration::from_secs(30)))?;
    // A server that refuses a huge body early closes while we still write: its answer is what counts.
    let written = socket.write_all(bytes);
    let mut answer = Vec::new();
    let read = socket.read_to_end(&mut answer);
    if answer.is_empty() {
        written.context("writing the request")?;
        read.context("reading the answer")?;
    }
    parse(&answer)
}

fn parse(bytes: &[u8]) -> Result<Answer> {
    let end = find(bytes, b"\r\n\r\n").with_context(|| {
        format!("no end of headers in {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]))
    })?;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).context("no status in the first line")?.parse()?;
    let body = &bytes[end + 4..];
    let body = if head.contains("transfer-encoding: chunked") { unchunk(body)? } else { body.to_vec() };
    Ok(Answer { status, head, body })
}

fn unchunk(mut rest: &[u8]) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line_end = find(rest, b"\r\n").context("chunk without a size line")?;
        let size = std::str::from_utf8(&rest[..line_end])?.split(';').next().unwrap_or("").trim();
        let size = usize::from_str_radix(size, 16).with_context(|| format!("chunk size {size:?}"))?;
        rest = &rest[line_end + 2..];
        if size == 0 {
            return Ok(body);
        }
        ensure!(rest.len() >= size + 2, "chunk of {size} bytes is cut off after {}", rest.len());
        body.extend_from_slice(&rest[..size]);
        rest = &rest[size + 2..];
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn framing_is_taken_off() {
        let check = |bytes: &str, status: u16, body: &str| {
            let answer = parse(bytes.as_bytes()).expect(bytes);
            assert_eq!((answer.status, answer.text().as_str()), (status, body));
        };
        check("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi");
        check(
            "HTTP/1.1 429 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3;x=y\r\n yo\r\n0\r\n\r\n",
            429,
            "hi yo",
        );
        assert!(parse(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhi").is_err());
        assert!(parse(b"").is_err());
    }
}
