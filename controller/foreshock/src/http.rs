//! Asks an HTTP server for one page, with a deadline on everything. Requests are HTTP/1.0, whose answers end with the
//! connection: all that a client of one's own servers needs.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How far an answer is waited for and read.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time for a connection, and for a pause within an answer.
    pub patience: Duration,
    pub answer_bytes: u64,
}

/// The status and the body of an answer.
pub fn get(addr: SocketAddr, host: &str, path: &str, limits: Limits) -> io::Result<(u16, String)> {
    let mut socket = TcpStream::connect_timeout(&addr, limits.patience)?;
    socket.set_read_timeout(Some(limits.patience))?;
    socket.set_write_timeout(Some(limits.patience))?;
    write!(socket, "GET {path} HTTP/1.0\r\nhost: {host}\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.take(limits.answer_bytes).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let strange = || io::Error::other("it does not speak HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(strange)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(strange)?;
    Ok((status, body.to_owned()))
}
