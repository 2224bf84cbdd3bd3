//! A small HTTP/1.1 client on a blocking socket. Benchmarks time requests to microseconds, so nothing
//! stands between them and the socket; and xtask stays quick to build.

use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Longest time that connecting, and any one read or write, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const IO_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest header line that an answer may have, bytes.
const LINE_LIMIT: u64 = 64 * 1024;

/// One connection, kept open between requests where the server allows it.
pub struct Connection {
    reader: BufReader<TcpStream>,
    addr: SocketAddr,
}

/// A whole answer.
pub struct Answer {
    pub status: u16,
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; an error when the status is not 200.
    pub fn json(&self) -> Result<serde_json::Value> {
        ensure!(self.status == 200, "status {}: {}", self.status, String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).context("the answer is not JSON")
    }
}

/// What is known of an answer once its headers are read.
pub struct Head {
    pub status: u16,
    chunked: bool,
    content_length: Option<usize>,
}

impl Connection {
    /// Connects; small writes go out at once.
    pub fn open(addr: SocketAddr) -> Result<Self> {
        let connection = Self::open_within(addr, CONNECT_TIMEOUT)?;
        connection.patience(IO_TIMEOUT)?;
        Ok(connection)
    }

    /// The same when no step may take longer than this.
    pub fn open_within(addr: SocketAddr, patience: Duration) -> Result<Self> {
        let socket =
            TcpStream::connect_timeout(&addr, patience).with_context(|| format!("cannot connect to {addr}"))?;
        socket.set_nodelay(true)?;
        let connection = Self { reader: BufReader::new(socket), addr };
        connection.patience(patience)?;
        Ok(connection)
    }

    fn patience(&self, patience: Duration) -> Result<()> {
        let socket = self.reader.get_ref();
        socket.set_read_timeout(Some(patience))?;
        Ok(socket.set_write_timeout(Some(patience))?)
    }

    /// Our end's address: what the kernel's record names as the client.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        Ok(self.reader.get_ref().local_addr()?)
    }

    /// Sends a request in one write, so that it is one segment where it fits.
    pub fn send(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) -> Result<()> {
        let mut message = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n{headers}content-length: {}\r\n\r\n",
            self.addr,
            body.len()
        )
        .into_bytes();
        message.extend_from_slice(body);
        self.reader.get_mut().write_all(&message).context("cannot send the request")
    }

    /// Reads an answer's status line and headers.
    pub fn read_head(&mut self) -> Result<Head> {
        let first = self.read_line()?;
        let status = first.split(' ').nth(1).and_then(|word| word.parse().ok());
        let mut head = Head {
            status: status.with_context(|| format!("not an HTTP answer: {first:?}"))?,
            chunked: false,
            content_length: None,
        };
        loop {
            let line = self.read_line()?.to_ascii_lowercase();
            match line.split_once(':').map(|(name, value)| (name, value.trim())) {
                Some(("transfer-encoding", value)) => head.chunked = value == "chunked",
                Some(("content-length", value)) => head.content_length = Some(value.parse()?),
                Some(_) => {}
                None => return Ok(head),
            }
        }
    }

    /// Next piece of a body; empty at its end. `left` is the state between calls, at first `None`.
    pub fn read_piece(&mut self, head: &Head, left: &mut Option<usize>) -> Result<Vec<u8>> {
        if head.chunked {
            return self.read_chunk();
        }
        let left = left.get_or_insert(head.content_length.unwrap_or(usize::MAX));
        let available = self.reader.fill_buf().context("reading the answer")?;
        let piece = available[..available.len().min(*left)].to_vec();
        self.reader.consume(piece.len());
        *left -= piece.len();
        Ok(piece)
    }

    fn read_chunk(&mut self) -> Result<Vec<u8>> {
        let line = self.read_line()?;
        let digits = line.split(';').next().unwrap_or("").trim();
        let size = usize::from_str_radix(digits, 16).with_context(|| format!("chunk size {digits:?}"))?;
        ensure!(size <= 64 << 20, "a chunk of {size} bytes");
        let mut chunk = vec![0; size + 2];
        self.reader.read_exact(&mut chunk).context("reading a chunk")?;
        chunk.truncate(size);
        Ok(chunk)
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        (&mut self.reader).take(LINE_LIMIT).read_until(b'\n', &mut line).context("reading the answer")?;
        if !line.ends_with(b"\n") {
            bail!("the connection ended inside an answer");
        }
        Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
    }

    /// One request and its whole answer.
    pub fn call(&mut self, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
        self.send(method, path, "", body)?;
        let head = self.read_head()?;
        let (mut left, mut whole) = (None, Vec::new());
        loop {
            let piece = self.read_piece(&head, &mut left)?;
            whole.extend_from_slice(&piece);
            if piece.is_empty() || left == Some(0) {
                return Ok(Answer { status: head.status, body: whole });
            }
        }
    }
}

/// One request on a connection of its own.
pub fn call(addr: SocketAddr, method: &str, path: &str, body: &[u8]) -> Result<Answer> {
    Connection::open(addr)?.call(method, path, body)
}

/// Asks until the path answers 200; `alive` may end the wait with a reason.
pub fn wait_ok(addr: SocketAddr, path: &str, patience: Duration, alive: &mut dyn FnMut() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    loop {
        alive()?;
        let said = match call(addr, "GET", path, b"") {
            Ok(answer) if answer.status == 200 => return Ok(()),
            Ok(answer) => format!("it says {} {}", answer.status, String::from_utf8_lossy(&answer.body)),
            Err(error) => format!("{error:#}"),
        };
        ensure!(begun.elapsed() < patience, "{addr}{path} is not ready after {} s: {said}", patience.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    /// Serves these bytes on one connection and gives what the client makes of them.
    fn answered(bytes: &'static str) -> Result<(u16, String)> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a client");
            let mut request = [0; 1024];
            let _ = socket.read(&mut request);
            socket.write_all(bytes.as_bytes()).expect("the client reads");
        });
        let answer = call(addr, "GET", "/", b"");
        server.join().expect("the server thread");
        answer.map(|answer| (answer.status, String::from_utf8_lossy(&answer.body).into_owned()))
    }

    #[test]
    fn bodies_by_length_by_chunks_and_to_the_end() {
        let check = |bytes, status, body: &str| assert_eq!(answered(bytes).expect(bytes), (status, body.to_owned()));
        check("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", 200, "hi");
        check("HTTP/1.1 204 None\r\ncontent-length: 0\r\n\r\n", 204, "");
        check("HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n1\r\n!\r\n0\r\n\r\n", 503, "hi!");
        check("HTTP/1.1 200 OK\r\n\r\nto the end", 200, "to the end");
        assert!(answered("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhi").is_err(), "cut off");
        assert!(answered("nonsense\r\n").is_err());
    }
}
