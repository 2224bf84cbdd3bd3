//! The control socket: JSON lines over a Unix socket, one [`Command`] answered by one [`Reply`].

use crate::error::EngineError;
use crate::life::Life;
use crate::shared::Shared;
use engine_wire::control::{ADAPTERS_MAX, Command, Hello, PROTOCOL, Reply};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

/// Longest command, bytes.
const MAX_LINE_BYTES: u64 = 512 * 1024;
/// Connections at once: a controller holds one, a successor or a person another.
const MAX_CONNECTIONS: usize = 16;
/// A connection that says nothing for this long is closed.
const IDLE_LIMIT: Duration = Duration::from_secs(600);
/// A peer that does not read its answer for this long is cut.
const WRITE_LIMIT: Duration = Duration::from_secs(5);

/// Removes the socket's path at the end, unless another process has put its own there.
pub(crate) struct SocketPath {
    path: PathBuf,
    inode: Option<u64>,
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        if self.inode.is_some() && self.inode == inode(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::symlink_metadata(path).ok().map(|metadata| metadata.ino())
}

/// Binds the socket, in place of one that a dead engine left behind. Only this user may connect.
pub(crate) fn bind(path: &Path) -> Result<(UnixListener, SocketPath), EngineError> {
    let failed = |message: String| EngineError::Control { path: path.to_path_buf(), message };
    remove_stale(path).map_err(failed)?;
    let listener = UnixListener::bind(path).map_err(|error| failed(error.to_string()))?;
    let guard = SocketPath { path: path.to_path_buf(), inode: inode(path) };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .map_err(|error| failed(error.to_string()))?;
    Ok((listener, guard))
}

fn remove_stale(path: &Path) -> Result<(), String> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if !metadata.file_type().is_socket() {
        return Err("something that is not a socket is in its place".into());
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err("another engine answers there".into()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|error| format!("a stale socket cannot be removed: {error}"))
        }
        Err(error) => Err(error.to_string()),
    }
}

/// Answers commands; shared by all connections.
pub(crate) struct Control {
    pub shared: Arc<Shared>,
    pub life: Arc<Life>,
}

impl Control {
    /// Accepts connections until dropped.
    pub async fn serve(self: Arc<Self>, listener: UnixListener) {
        let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((stream, _)) => {
                    let control = self.clone();
                    tokio::spawn(async move {
                        control.connection(stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Mostly a lack of file descriptors, which passes.
                    tracing::warn!(%error, "cannot accept on the control socket");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn connection(&self, stream: UnixStream) {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        loop {
            let mut line = Vec::new();
            let mut limited = (&mut reader).take(MAX_LINE_BYTES);
            let read = within(IDLE_LIMIT, limited.read_until(b'\n', &mut line)).await;
            if read.is_none_or(|bytes| bytes == 0) {
                return;
            }
            let cut = !line.ends_with(b"\n") && line.len() as u64 == MAX_LINE_BYTES;
            let reply = if cut { refused("the command is too long") } else { self.answer_line(&line) };
            let Ok(mut bytes) = serde_json::to_vec(&reply) else { return };
            bytes.push(b'\n');
            // After a line that is too long there is no telling where the next one begins.
            if within(WRITE_LIMIT, writer.write_all(&bytes)).await.is_none() || cut {
                return;
            }
        }
    }

    fn answer_line(&self, line: &[u8]) -> Reply {
        match serde_json::from_slice(line) {
            Ok(command) => self.answer(command),
            Err(error) => refused(&format!("not a command of protocol {PROTOCOL}: {error}")),
        }
    }

    /// Carries out one command.
    pub fn answer(&self, command: Command) -> Reply {
        let epoch = match command {
            // Answered whatever the other's version is: it must learn ours to decide.
            Command::Hello { protocol: _ } => return Reply::Hello(self.hello()),
            Command::Renew { epoch, .. } | Command::Drain { epoch, .. } | Command::Adapters { epoch, .. } => epoch,
        };
        if let Err(fenced) = self.life.fence(epoch) {
            return refused(&format!("epoch {epoch} is over: a controller of epoch {} has this engine", fenced.epoch));
        }
        match command {
            Command::Renew { lease_ms: 0, .. } => refused("lease_ms is 0"),
            Command::Renew { lease_ms, .. } => {
                self.life.renew(Duration::from_millis(lease_ms));
                Reply::Telemetry(self.shared.ledger().report(self.shared.state()))
            }
            Command::Drain { deadline_ms, .. } => {
                // At once, so that no request slips in between this answer and the drain.
                self.shared.set_draining();
                self.life.drain_within(Duration::from_millis(deadline_ms));
                Reply::Done
            }
            Command::Adapters { adapters, .. } => match self.shared.shelf.set(adapters) {
                Ok(()) => Reply::Done,
                Err(message) => refused(&message),
            },
            Command::Hello { .. } => Reply::Hello(self.hello()),
        }
    }

    fn hello(&self) -> Hello {
        let identity = self.shared.identity.clone();
        Hello {
            protocol: PROTOCOL,
            instance: identity.instance,
            model: identity.model,
            revision: identity.revision,
            pid: std::process::id(),
            port: identity.port,
            cores: identity.cores,
            started_at_ns: identity.started_at_ns,
            ready_at_ns: self.shared.ledger().ready_at_ns,
            epoch: self.life.epoch(),
            adapters_max: ADAPTERS_MAX as u32,
        }
    }
}

fn refused(message: &str) -> Reply {
    Reply::Refused { message: message.to_string() }
}

/// The result of an I/O operation; none for an error, or when the limit passed first.
async fn within<T>(limit: Duration, operation: impl Future<Output = std::io::Result<T>>) -> Option<T> {
    tokio::time::timeout(limit, operation).await.ok()?.ok()
}
