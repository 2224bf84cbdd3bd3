//! The control socket: JSON lines over a Unix socket, one [`Command`] answered by one [`Reply`].

use crate::clock;
use crate::error::EngineError;
use crate::heads::Heads;
use crate::life::Life;
use crate::options::EngineOptions;
use crate::shared::Shared;
use engine_wire::control::{ADAPTERS_MAX, Command, Hello, PROTOCOL, Reply, SpareReport};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};

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

impl SocketPath {
    /// It has another path now.
    pub fn moved(&mut self, path: &Path) {
        self.path = path.to_path_buf();
    }
}

/// Gives a socket another path, in place of one that a dead engine left behind. The error is for people.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), String> {
    remove_stale(to)?;
    std::fs::rename(from, to).map_err(|error| format!("the control socket cannot be moved: {error}"))
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
    life: Arc<Life>,
    /// Set once there is an engine: from the first moment, or when a spare process becomes one.
    shared: OnceLock<Arc<Shared>>,
    spare: Option<SpareSeat>,
}

/// Who answers.
pub(crate) enum Seat {
    Engine(Arc<Shared>),
    Spare(SpareSeat),
}

/// A process without a model.
pub(crate) struct SpareSeat {
    instance: String,
    port: u16,
    started_at_ns: u64,
    heads: Heads,
    adopt: Adopt,
    /// Taken by the one who makes an engine of it.
    adopted: Mutex<Option<oneshot::Sender<Adopted>>>,
}

/// From arguments to an engine that has yet to load; the error is for people.
type Adopt = Box<dyn Fn(&[String]) -> Result<Adopted, String> + Send + Sync>;

/// What a spare process has become.
pub(crate) struct Adopted {
    pub options: EngineOptions,
    pub shared: Arc<Shared>,
    pub cores: Vec<u32>,
}

impl SpareSeat {
    pub fn new(instance: String, port: u16, heads: Heads, adopt: Adopt, adopted: oneshot::Sender<Adopted>) -> Self {
        let started_at_ns = clock::monotonic_ns();
        Self { instance, port, started_at_ns, heads, adopt, adopted: Mutex::new(Some(adopted)) }
    }
}

impl Control {
    pub fn new(life: Arc<Life>, seat: Seat) -> Self {
        let (shared, spare) = match seat {
            Seat::Engine(shared) => (OnceLock::from(shared), None),
            Seat::Spare(spare) => (OnceLock::new(), Some(spare)),
        };
        Self { life, shared, spare }
    }

    /// Listens at a path from now on, until the process ends.
    pub fn open(self: &Arc<Self>, path: &Path) -> Result<SocketPath, EngineError> {
        let (listener, path) = bind(path)?;
        tokio::spawn(self.clone().serve(listener));
        Ok(path)
    }

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
        let epoch = match &command {
            // Answered whatever the other's version is: it must learn ours to decide.
            Command::Hello { protocol: _ } => return self.hello(),
            Command::Renew { epoch, .. }
            | Command::Drain { epoch, .. }
            | Command::Adapters { epoch, .. }
            | Command::Adopt { epoch, .. }
            | Command::Prepare { epoch, .. } => *epoch,
        };
        if let Err(fenced) = self.life.fence(epoch) {
            return refused(&format!("epoch {epoch} is over: a controller of epoch {} has this engine", fenced.epoch));
        }
        match (command, self.shared.get(), &self.spare) {
            (Command::Hello { .. }, ..) => self.hello(),
            (Command::Renew { lease_ms: 0, .. }, ..) => refused("lease_ms is 0"),
            (Command::Renew { lease_ms, .. }, shared, spare) => {
                self.life.renew(Duration::from_millis(lease_ms));
                match (shared, spare) {
                    (Some(shared), _) => Reply::Telemetry(shared.ledger().report(shared.state())),
                    (None, spare) => Reply::Spare(SpareReport {
                        resident_bytes: clock::resident_bytes(),
                        heads: spare.as_ref().map_or(0, |spare| spare.heads.len() as u32),
                    }),
                }
            }
            (Command::Drain { deadline_ms, .. }, shared, _) => {
                // At once, so that no request slips in between this answer and the drain.
                if let Some(shared) = shared {
                    shared.set_draining();
                }
                self.life.drain_within(Duration::from_millis(deadline_ms));
                Reply::Done
            }
            (Command::Adapters { adapters, .. }, Some(shared), _) => match shared.shelf.set(adapters) {
                Ok(()) => Reply::Done,
                Err(message) => refused(&message),
            },
            (Command::Adopt { args, .. }, None, Some(spare)) => self.adopt(spare, &args),
            (Command::Prepare { heads, .. }, None, Some(spare)) => {
                spare.heads.want(heads);
                Reply::Done
            }
            (Command::Adapters { .. }, None, _) => refused("it has no model yet"),
            (Command::Adopt { .. } | Command::Prepare { .. }, ..) => refused("it is no spare process"),
        }
    }

    fn adopt(&self, spare: &SpareSeat, args: &[String]) -> Reply {
        // Held to the end: of two controllers one finds that there is no place any more.
        let mut place = spare.adopted.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            return refused("it is no spare process");
        }
        let adopted = match (spare.adopt)(args) {
            Ok(adopted) => adopted,
            Err(message) => return refused(&message),
        };
        let _ = self.shared.set(adopted.shared.clone());
        match place.take().is_some_and(|place| place.send(adopted).is_ok()) {
            true => Reply::Done,
            false => refused("the process is about to end"),
        }
    }

    fn hello(&self) -> Reply {
        let (epoch, pid) = (self.life.epoch(), std::process::id());
        let spare = |spare: &SpareSeat| Hello {
            protocol: PROTOCOL,
            instance: spare.instance.clone(),
            model: String::new(),
            revision: String::new(),
            pid,
            port: spare.port,
            cores: Vec::new(),
            started_at_ns: spare.started_at_ns,
            ready_at_ns: None,
            epoch,
            adapters_max: 0,
            spare: true,
        };
        let engine = |shared: &Arc<Shared>| {
            let identity = shared.identity.clone();
            Hello {
                protocol: PROTOCOL,
                instance: identity.instance,
                model: identity.model,
                revision: identity.revision,
                pid,
                port: identity.port,
                cores: identity.cores,
                started_at_ns: identity.started_at_ns,
                ready_at_ns: shared.ledger().ready_at_ns,
                epoch,
                adapters_max: ADAPTERS_MAX as u32,
                spare: false,
            }
        };
        let hello = self.shared.get().map(engine).or_else(|| self.spare.as_ref().map(spare));
        hello.map_or_else(|| refused("there is nobody here"), Reply::Hello)
    }
}

fn refused(message: &str) -> Reply {
    Reply::Refused { message: message.to_string() }
}

/// The result of an I/O operation; none for an error, or when the limit passed first.
async fn within<T>(limit: Duration, operation: impl Future<Output = std::io::Result<T>>) -> Option<T> {
    tokio::time::timeout(limit, operation).await.ok()?.ok()
}
