//! Spare processes: engines without a model, which a start turns into one. They are made after a start, never in front
//! of it, live on their lease as engines do, and are taken over by the next controller.

use super::control::ControlClient;
use super::identity::ProcessHandle;
use crate::config::DaemonConfig;
use engine_wire::control::{HEADS_MAX, HeadSpec, PROTOCOL, SpareReport};
use rustix::process::Signal;
use serde::Serialize;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// What one takes until it has been measured: some 20 ms, and memory rounded up, bytes.
const MADE_IN: Duration = Duration::from_millis(20);
const BYTES: u64 = 32 << 20;
/// Time that a new one has for making its socket.
const MAKE_LIMIT: Duration = Duration::from_secs(10);
const CONNECT_EVERY: Duration = Duration::from_millis(2);
/// Pause after one that could not be made.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// Most time between two renewals of a lease: nothing is learned by them.
const RENEW_AT_LEAST: Duration = Duration::from_secs(5);
/// From SIGTERM to SIGKILL.
const END_LIMIT: Duration = Duration::from_secs(1);

/// The spare processes of a node. Cloning shares them.
#[derive(Clone)]
pub(super) struct Spares(Arc<Inner>);

struct Inner {
    config: Arc<DaemonConfig>,
    epoch: u64,
    state: Mutex<State>,
    heads: watch::Sender<Vec<HeadSpec>>,
}

#[derive(Default)]
struct State {
    ready: Vec<Spare>,
    making: u32,
    numbered: u64,
    retry_at: Option<Instant>,
    made_in: Option<Duration>,
}

/// One that can adopt a model.
pub(super) struct Spare {
    pub process: ProcessHandle,
    pub port: u16,
    pub paths: SparePaths,
    /// What it is driven by, to be taken out by who makes an engine of it.
    pub seat: SparePlace,
    report: SpareReport,
}

pub(super) type SparePlace = Arc<tokio::sync::Mutex<Option<Seat>>>;

/// The ends of a spare process's connections.
pub(super) struct Seat {
    pub client: ControlClient,
    /// None of one that an earlier controller made.
    pub notices: Option<pipe::Receiver>,
}

/// Its socket and log, until it becomes an engine.
#[derive(Clone, Debug)]
pub(super) struct SparePaths {
    pub socket: PathBuf,
    pub log: PathBuf,
}

impl SparePaths {
    fn new(state_dir: &Path, stem: &str) -> Self {
        let socket = folder(state_dir).join(format!("{stem}.sock"));
        Self { socket, log: state_dir.join("logs").join(format!("{stem}.log")) }
    }
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("spares")
}

/// One as others see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SpareView {
    pub pid: u32,
    pub port: u16,
    pub resident_bytes: u64,
    /// Heads that it has read ahead.
    pub heads: u32,
}

/// All of them as others see them.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SparesView {
    pub ready: Vec<SpareView>,
    pub making: u32,
}

impl Spares {
    /// # Errors
    /// When their folder cannot be made.
    pub fn new(config: Arc<DaemonConfig>, epoch: u64) -> io::Result<Self> {
        std::fs::create_dir_all(folder(&config.state_dir))?;
        let (state, heads) = (Mutex::default(), watch::Sender::default());
        Ok(Self(Arc::new(Inner { config, epoch, state, heads })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is whole before the lock is given back.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that lives, for a start.
    pub fn take(&self) -> Option<Spare> {
        let mut state = self.state();
        // The one that has been there longest has read most; the others are found dead by those who watch them.
        while !state.ready.is_empty() {
            let spare = state.ready.remove(0);
            if !spare.process.has_ended() {
                return Some(spare);
            }
        }
        None
    }

    /// Holds so many from now on; new ones are made only where `may_make`.
    pub fn keep(&self, wanted: u32, may_make: bool, heads: Vec<HeadSpec>) {
        self.0.heads.send_if_modified(|known| {
            let changed = *known != heads;
            *known = heads;
            changed
        });
        let mut state = self.state();
        while state.ready.len() > wanted as usize {
            // Whoever watches it sees its end.
            if let Some(spare) = state.ready.pop() {
                spare.process.signal(Signal::TERM);
            }
        }
        let is_due = state.retry_at.is_none_or(|at| at <= Instant::now());
        while may_make && is_due && state.ready.len() + (state.making as usize) < wanted as usize {
            state.making += 1;
            tokio::spawn(self.clone().make());
        }
    }

    /// What one takes, as measured: time until it is ready, and memory.
    pub fn cost(&self) -> (Duration, u64) {
        let state = self.state();
        let bytes = state.ready.iter().map(|spare| spare.report.resident_bytes).max();
        (state.made_in.unwrap_or(MADE_IN), bytes.filter(|bytes| *bytes > 0).unwrap_or(BYTES))
    }

    pub fn view(&self) -> SparesView {
        let state = self.state();
        let view = |spare: &Spare| SpareView {
            pid: spare.process.pid,
            port: spare.port,
            resident_bytes: spare.report.resident_bytes,
            heads: spare.report.heads,
        };
        SparesView { ready: state.ready.iter().map(view).collect(), making: state.making }
    }

    async fn make(self) {
        let began = Instant::now();
        let made = self.start().await;
        let mut state = self.state();
        state.making = state.making.saturating_sub(1);
        match made {
            Ok(spare) => {
                state.made_in = Some(began.elapsed());
                state.retry_at = None;
                drop(state);
                self.watch(spare);
            }
            Err(error) => {
                state.retry_at = Some(Instant::now() + RETRY_AFTER);
                tracing::warn!(%error, "no spare process could be made: starts take an exec each");
            }
        }
    }

    async fn start(&self) -> io::Result<Spare> {
        let (config, number) = (&self.0.config, {
            let mut state = self.state();
            state.numbered += 1;
            state.numbered
        });
        let stem = format!("spare-{}-{number}", self.0.epoch);
        let paths = SparePaths::new(&config.state_dir, &stem);
        let _ = std::fs::remove_file(&paths.socket);
        let log = File::create(&paths.log)?;
        let mut child = Command::new(&config.engine_exe)
            .process_group(0)
            .args(["engine", "--spare", "--instance", &stem, "--lease-ms", &config.lease_ms.to_string(), "--control"])
            .arg(&paths.socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let notices = child.stdout.take().map(OwnedFd::from).map(pipe::Receiver::from_owned_fd).transpose()?;
        let process = ProcessHandle::open(child.id()).inspect_err(|_| drop(child.kill()))?;
        let failed = |error: io::Error| {
            process.signal(Signal::KILL);
            error
        };
        let connected = timeout(MAKE_LIMIT, connect(&paths.socket, &process)).await;
        let outcome = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let (client, port) = match outcome {
            Ok(connected) => connected,
            Err(error) => {
                let error = failed(error);
                let _ = tokio::task::spawn_blocking(move || child.wait()).await;
                forget(&paths);
                return Err(error);
            }
        };
        Ok(Spare::new(process, port, paths, Seat { client, notices }))
    }

    /// Puts one among the ready, and tends it until it ends or is taken.
    fn watch(&self, spare: Spare) {
        let (paths, place, pid) = (spare.paths.clone(), spare.seat.clone(), spare.process.pid);
        let clone = || Ok((spare.process.fd.try_clone()?, spare.process.fd.try_clone()?));
        let (pidfd, to_reap) = match clone() {
            Ok::<_, io::Error>(pidfds) => pidfds,
            Err(error) => {
                tracing::warn!(%error, "a spare process cannot be watched");
                spare.process.signal(Signal::KILL);
                return;
            }
        };
        self.state().ready.push(spare);
        let spares = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = controller_witness::exit::ended(pidfd) => drop(ended),
                () = spares.tend(&place, pid) => return,
            }
            // Whoever has taken it waits for its end himself.
            if place.lock().await.take().is_some() {
                let _ = controller_witness::exit::wait(to_reap).await;
                spares.drop_one(pid);
                forget(&paths);
            }
        });
    }

    /// Renews its lease and tells it which heads to read, until it is taken.
    async fn tend(&self, place: &SparePlace, pid: u32) {
        let mut heads = self.0.heads.subscribe();
        heads.mark_changed();
        let renew_every = Duration::from_millis(self.0.config.lease_ms / 10).min(RENEW_AT_LEAST);
        loop {
            let wanted = heads.has_changed().unwrap_or(false).then(|| heads.borrow_and_update().clone());
            let report = {
                let mut seat = place.lock().await;
                let Some(seat) = seat.as_mut() else { return };
                self.exchange(&mut seat.client, wanted).await
            };
            match report {
                Ok(report) => {
                    let mut state = self.state();
                    if let Some(spare) = state.ready.iter_mut().find(|spare| spare.process.pid == pid) {
                        spare.report = report;
                    }
                }
                Err(error) => {
                    tracing::warn!(pid, %error, "a spare process does not answer and is ended");
                    self.drop_one(pid);
                    // Until its end is seen.
                    std::future::pending::<()>().await;
                }
            }
            tokio::select! {
                () = sleep(renew_every) => {}
                _ = heads.changed() => heads.mark_changed(),
            }
        }
    }

    async fn exchange(&self, client: &mut ControlClient, heads: Option<Vec<HeadSpec>>) -> io::Result<SpareReport> {
        if let Some(mut heads) = heads {
            heads.truncate(HEADS_MAX);
            client.prepare(self.0.epoch, heads).await?;
        }
        client.renew_spare(self.0.epoch, self.0.config.lease_ms).await
    }

    /// Ends one that nobody has taken.
    fn drop_one(&self, pid: u32) {
        let mut state = self.state();
        if let Some(index) = state.ready.iter().position(|spare| spare.process.pid == pid) {
            state.ready.remove(index).process.signal(Signal::KILL);
        }
    }

    /// Takes over those that an earlier controller left, if they run this very program; the others end.
    pub async fn adopt(&self) {
        let Ok(entries) = std::fs::read_dir(folder(&self.0.config.state_dir)) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let stem = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
            let paths = SparePaths::new(&self.0.config.state_dir, &stem);
            match self.find(&paths).await {
                Ok(spare) => {
                    tracing::info!(pid = spare.process.pid, "spare process taken over");
                    self.watch(spare);
                }
                Err(error) => {
                    tracing::info!(socket = %path.display(), %error, "a spare process of an earlier controller is of no use");
                    let _ = std::fs::remove_file(&path);
                }
            }
        }
    }

    async fn find(&self, paths: &SparePaths) -> io::Result<Spare> {
        let mut client = ControlClient::connect(&paths.socket).await?;
        let hello = client.hello().await?;
        let process = ProcessHandle::open(hello.pid)?;
        if !hello.spare || hello.protocol != PROTOCOL || !self.is_ours(hello.pid) {
            if hello.spare {
                process.signal(Signal::TERM);
            }
            return Err(io::Error::other("it runs another program"));
        }
        client.renew_spare(self.0.epoch, self.0.config.lease_ms).await?;
        Ok(Spare::new(process, hello.port, paths.clone(), Seat { client, notices: None }))
    }

    /// Whether a process runs the program that engines are started with. One that was replaced since reads as another.
    fn is_ours(&self, pid: u32) -> bool {
        let ours = self.0.config.engine_exe.canonicalize();
        std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| ours.is_ok_and(|ours| exe == ours))
    }

    /// Ends all of them, and waits until they have.
    pub async fn end(&self) {
        let all: Vec<Spare> = std::mem::take(&mut self.state().ready);
        all.iter().for_each(|spare| spare.process.signal(Signal::TERM));
        let deadline = Instant::now() + END_LIMIT;
        for spare in &all {
            while !spare.process.has_ended() && Instant::now() < deadline {
                sleep(CONNECT_EVERY).await;
            }
            spare.process.signal(Signal::KILL);
        }
    }
}

impl Spare {
    fn new(process: ProcessHandle, port: u16, paths: SparePaths, seat: Seat) -> Self {
        let seat = Arc::new(tokio::sync::Mutex::new(Some(seat)));
        Self { process, port, paths, seat, report: SpareReport { resident_bytes: 0, heads: 0 } }
    }
}

/// Connects as soon as it listens.
async fn connect(socket: &Path, process: &ProcessHandle) -> io::Result<(ControlClient, u16)> {
    loop {
        if let Ok(mut client) = ControlClient::connect(socket).await {
            let hello = client.hello().await?;
            let is_it = hello.spare && hello.protocol == PROTOCOL && hello.pid == process.pid;
            return if is_it { Ok((client, hello.port)) } else { Err(io::Error::other("somebody else answers there")) };
        }
        if process.has_ended() {
            return Err(io::Error::other("it ended at once"));
        }
        sleep(CONNECT_EVERY).await;
    }
}

/// Removes what one leaves that never became an engine.
fn forget(paths: &SparePaths) {
    let _ = std::fs::remove_file(&paths.socket);
    let _ = std::fs::remove_file(&paths.log);
}
