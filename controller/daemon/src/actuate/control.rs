//! A client of an engine's control socket: one JSON line asked, one answered, each within a time limit.

use engine_wire::control::{AdapterSpec, Command, HeadSpec, Hello, PROTOCOL, Reply, SpareReport, Telemetry};
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// Longest that an answer may take. Engines answer from their own thread, beside the step loop.
const REPLY_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest line taken, bytes: an engine gone wrong must not fill our memory.
const LINE_LIMIT_BYTES: u64 = 4 << 20;

/// A connection to one engine.
#[derive(Debug)]
pub struct ControlClient {
    lines: BufReader<OwnedReadHalf>,
    sink: OwnedWriteHalf,
    /// Adapters that the engine takes, as its last hello said.
    adapters_max: u32,
}

impl ControlClient {
    /// Connects; the engine may not have made its socket yet.
    ///
    /// # Errors
    /// When nobody listens there.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        let stream = within(UnixStream::connect(socket)).await?;
        let (source, sink) = stream.into_split();
        Ok(Self { lines: BufReader::new(source), sink, adapters_max: 0 })
    }

    /// Asks who the engine is.
    ///
    /// # Errors
    /// When it does not answer in time or answers something else.
    pub async fn hello(&mut self) -> io::Result<Hello> {
        match self.ask(&Command::Hello { protocol: PROTOCOL }).await? {
            Reply::Hello(hello) => {
                self.adapters_max = hello.adapters_max;
                Ok(hello)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Renews the lease.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] when the engine has seen a higher epoch; otherwise when it does not answer.
    pub async fn renew(&mut self, epoch: u64, lease_ms: u64) -> io::Result<Telemetry> {
        match self.ask(&Command::Renew { epoch, lease_ms }).await? {
            Reply::Telemetry(telemetry) => Ok(telemetry),
            other => Err(unexpected(&other)),
        }
    }

    /// Renews the lease of a spare process.
    ///
    /// # Errors
    /// As [`ControlClient::renew`], and when it is none any more.
    pub async fn renew_spare(&mut self, epoch: u64, lease_ms: u64) -> io::Result<SpareReport> {
        match self.ask(&Command::Renew { epoch, lease_ms }).await? {
            Reply::Spare(report) => Ok(report),
            other => Err(unexpected(&other)),
        }
    }

    /// Tells a spare process which heads to read ahead.
    ///
    /// # Errors
    /// As [`ControlClient::renew`].
    pub async fn prepare(&mut self, epoch: u64, heads: Vec<HeadSpec>) -> io::Result<()> {
        match self.ask(&Command::Prepare { epoch, heads }).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Makes a spare process the engine of these arguments of `foreshock engine`.
    ///
    /// # Errors
    /// As [`ControlClient::renew`], and when the arguments are not taken.
    pub async fn adopt(&mut self, epoch: u64, args: Vec<String>) -> io::Result<()> {
        match self.ask(&Command::Adopt { epoch, args }).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Asks the engine to finish its streams and exit.
    ///
    /// # Errors
    /// As [`ControlClient::renew`].
    pub async fn drain(&mut self, epoch: u64, deadline_ms: u64) -> io::Result<()> {
        match self.ask(&Command::Drain { epoch, deadline_ms }).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Tells the engine which adapters to serve. The inner error is its refusal.
    ///
    /// # Errors
    /// When it does not answer in time or answers something else.
    pub async fn adapters(&mut self, epoch: u64, adapters: &[AdapterSpec]) -> io::Result<Result<(), String>> {
        if adapters.len() > self.adapters_max as usize {
            return Ok(Err(format!("it takes {} adapters, not {}", self.adapters_max, adapters.len())));
        }
        // An older engine knows neither adapters nor the command.
        if self.adapters_max == 0 {
            return Ok(Ok(()));
        }
        match self.ask(&Command::Adapters { epoch, adapters: adapters.to_vec() }).await? {
            Reply::Done => Ok(Ok(())),
            // An epoch that is over is met again, and understood, at the next renewal.
            Reply::Refused { message } => Ok(Err(message)),
            other => Err(unexpected(&other)),
        }
    }

    /// Resolves when the engine closes the connection. It says nothing unasked, so anything else that comes
    /// ends the connection too. May be dropped and called again.
    pub async fn closed(&mut self) {
        let _ = self.lines.fill_buf().await;
    }

    async fn ask(&mut self, command: &Command) -> io::Result<Reply> {
        let mut line = serde_json::to_vec(command)?;
        line.push(b'\n');
        within(async {
            self.sink.write_all(&line).await?;
            let mut answer = Vec::new();
            (&mut self.lines).take(LINE_LIMIT_BYTES).read_until(b'\n', &mut answer).await?;
            if answer.last() != Some(&b'\n') {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(serde_json::from_slice(&answer)?)
        })
        .await
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(REPLY_TIMEOUT, work).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// The protocol refuses in one case only that a well-formed command can meet: our epoch is not the highest.
fn unexpected(reply: &Reply) -> io::Error {
    match reply {
        Reply::Refused { message } => io::Error::new(io::ErrorKind::PermissionDenied, message.clone()),
        other => io::Error::new(io::ErrorKind::InvalidData, format!("the engine answered {other:?}")),
    }
}
