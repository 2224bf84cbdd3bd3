//! The life of one engine process: bind, announce, load, serve, drain, end.

use crate::backend::LocalBackend;
use crate::clock;
use crate::control::{Control, Seat, SocketPath};
use crate::cores;
use crate::encode_loop::EncodeLoop;
use crate::error::EngineError;
use crate::life::Life;
use crate::limits::ModelFacts;
use crate::load::{self, Came, Loaded, LoadedModel, Loader};
use crate::notice::Voice;
use crate::options::EngineOptions;
use crate::request::Message;
use crate::server;
use crate::shared::{Identity, Shared};
use crate::step_loop::StepLoop;
use crate::text::LazyText;
use engine_core::{Scheduler, SchedulerConfig};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

/// Time that streams get when the controller is lost for good.
const ORPHAN_DRAIN: Duration = Duration::from_secs(60);
/// Time for a step in hand to end, once the step thread is told to stop.
const STEP_THREAD_LIMIT: Duration = Duration::from_secs(5);

/// Runs one engine until it is drained, orphaned or told to end. The error's `exit_code` is the process's.
pub async fn run(options: EngineOptions) -> Result<(), EngineError> {
    run_with(options, Box::new(load::load_checkpoint)).await
}

/// As [`run`], with another way to come by a device.
pub async fn run_with(options: EngineOptions, loader: Loader) -> Result<(), EngineError> {
    let voice = if options.supervision.is_some() { Voice::Controller } else { Voice::Person };
    let result = start_and_serve(options, loader).await;
    if let Err(error) = &result {
        voice.failed(&error.to_string());
    }
    result
}

async fn start_and_serve(options: EngineOptions, loader: Loader) -> Result<(), EngineError> {
    let started_at_ns = clock::process_started_ns(clock::monotonic_ns());
    options.check()?;
    let cores = cores::confine(&options.cores)?;
    let (listener, addr) = bind(SocketAddr::new(options.host, options.port)).await?;
    let signals = Signals::new()?;
    let shared = seated(&options, addr.port(), cores.clone(), started_at_ns)?;
    let life = Arc::new(Life::new(options.supervision.as_ref().map(|supervision| supervision.lease)));
    // Held to the end: dropping it removes the socket's path.
    let _control = open_control(&options, &shared, &life)?;
    serve_on((listener, addr, signals), (life, shared), options, cores, loader).await
}

/// What an engine's parts share, for an engine that listens at a port on these cores.
pub(crate) fn seated(
    options: &EngineOptions,
    port: u16,
    cores: Vec<u32>,
    started_at_ns: u64,
) -> Result<Arc<Shared>, EngineError> {
    let identity = identity(options, port, cores, started_at_ns);
    let shared = Shared::new(identity, options.max_queue, max_inside(options));
    let adapters = shared.shelf.set(options.adapters.clone());
    adapters.map_err(|message| EngineError::BadOption { message: format!("--adapter: {message}") })?;
    Ok(Arc::new(shared))
}

/// Requests that may be inside at once, those in the batch included.
fn max_inside(options: &EngineOptions) -> usize {
    options.max_queue.saturating_add(SchedulerConfig::default().max_running)
}

/// Serves where somebody listens already, until the end.
pub(crate) async fn serve_on(
    (listener, addr, signals): (TcpListener, SocketAddr, Signals),
    (life, shared): (Arc<Life>, Arc<Shared>),
    options: EngineOptions,
    cores: Vec<u32>,
    loader: Loader,
) -> Result<(), EngineError> {
    let voice = if options.supervision.is_some() { Voice::Controller } else { Voice::Person };
    // One more than there are requests, so that the message to stop always fits.
    let (messages, inbox) = mpsc::sync_channel(max_inside(&options).saturating_add(1));
    let text = Arc::new(LazyText::new(options.model.clone()));
    let drain_timeout = options.drain_timeout;
    // Loading begins first: it is what takes time.
    let thread = StepThread::spawn(shared.clone(), options, cores, SchedulerConfig::default(), loader, inbox)?;
    let backend = LocalBackend::new(shared.clone(), messages.clone(), text, engine_http::clock::unix_s());
    let server = server::Server::start(listener, backend, shared.clone())?;
    {
        let mut ledger = shared.ledger();
        ledger.phases.listening_ms = ledger.since_start_ms(clock::monotonic_ns());
    }
    voice.listening(addr, &shared.identity.model);

    let mut engine = Engine { shared, life, voice, drain_timeout, signals, thread, loading: true };
    let result = engine.serve().await;
    engine.stop_step_thread(&messages).await;
    server.stop().await;
    result
}

pub(crate) async fn bind(addr: SocketAddr) -> Result<(TcpListener, SocketAddr), EngineError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::AddrInUse => EngineError::PortInUse { addr },
        _ => EngineError::Listen { addr, source },
    };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

fn identity(options: &EngineOptions, port: u16, cores: Vec<u32>, started_at_ns: u64) -> Identity {
    let supervision = options.supervision.as_ref();
    Identity {
        instance: supervision.map_or_else(|| format!("pid-{}", std::process::id()), |s| s.instance.clone()),
        model: options.served_name(),
        // By itself an engine does not digest its file: that would cost more than loading it.
        revision: supervision.map_or_else(|| "unregistered".to_string(), |s| s.revision.clone()),
        port,
        cores,
        started_at_ns,
    }
}

fn open_control(
    options: &EngineOptions,
    shared: &Arc<Shared>,
    life: &Arc<Life>,
) -> Result<Option<SocketPath>, EngineError> {
    let Some(supervision) = &options.supervision else { return Ok(None) };
    let control = Arc::new(Control::new(life.clone(), Seat::Engine(shared.clone())));
    control.open(&supervision.control).map(Some)
}

/// The step thread as the async side sees it.
struct StepThread {
    /// The outcome of loading.
    loaded: oneshot::Receiver<Result<(), EngineError>>,
    /// Closes when the thread is gone, however it went.
    gone: oneshot::Receiver<()>,
}

impl StepThread {
    fn spawn(
        shared: Arc<Shared>,
        options: EngineOptions,
        cores: Vec<u32>,
        scheduling: SchedulerConfig,
        loader: Loader,
        inbox: Receiver<Message>,
    ) -> Result<Self, EngineError> {
        let (loaded_sender, loaded) = oneshot::channel();
        let (alive, gone) = oneshot::channel::<()>();
        let runtime = Handle::current();
        let body = move || {
            let _alive = alive;
            match prepare(&shared, &options, &cores, scheduling, loader, inbox, runtime) {
                Ok(steps) => {
                    let _ = loaded_sender.send(Ok(()));
                    steps();
                }
                Err(error) => {
                    let _ = loaded_sender.send(Err(error));
                }
            }
        };
        let spawned = std::thread::Builder::new().name("step".into()).spawn(body);
        spawned.map_err(|error| EngineError::StepThread { message: format!("it cannot be started: {error}") })?;
        Ok(Self { loaded, gone })
    }
}

/// Loads the model; the result runs its steps until the engine ends.
fn prepare(
    shared: &Arc<Shared>,
    options: &EngineOptions,
    cores: &[u32],
    scheduling: SchedulerConfig,
    loader: Loader,
    inbox: Receiver<Message>,
    runtime: Handle,
) -> Result<Box<dyn FnOnce()>, EngineError> {
    let (came, steps): (Came, Box<dyn FnOnce()>) = match loader(options, cores)? {
        Loaded::Decoder(model) => {
            let came = model.came;
            let step_loop = decoder(shared, options, scheduling, model, inbox, runtime)?;
            (came, Box::new(move || step_loop.run()))
        }
        Loaded::Encoder(encoder) => {
            let _ = shared.encoder.set(encoder.device.shape());
            let encode_loop = EncodeLoop::new(shared.clone(), inbox, runtime, encoder.device);
            (encoder.came, Box::new(move || encode_loop.run()))
        }
    };
    let ready_at_ns = clock::monotonic_ns();
    let mut ledger = shared.ledger();
    ledger.phases.mapped_ms = ledger.since_start_ms(came.at_ns);
    (ledger.phases.tier, ledger.phases.read_bytes) = (came.tier, came.read_bytes);
    ledger.phases.ready_ms = ledger.since_start_ms(ready_at_ns);
    ledger.ready_at_ns = Some(ready_at_ns);
    drop(ledger);
    shared.set_ready();
    Ok(steps)
}

fn decoder(
    shared: &Arc<Shared>,
    options: &EngineOptions,
    mut scheduling: SchedulerConfig,
    model: LoadedModel,
    inbox: Receiver<Message>,
    runtime: Handle,
) -> Result<StepLoop, EngineError> {
    let shape = model.forward.shape();
    scheduling.eos_token_ids = model.eos_token_ids;
    scheduling.itl_target_ns = u64::try_from(options.itl_target.as_nanos()).unwrap_or(u64::MAX);
    scheduling.speculation = options.speculation;
    scheduling.window_tokens = model.forward.window_tokens();
    // The slots bound what is inside; the scheduler's own bound must not be the tighter one.
    scheduling.max_waiting = usize::MAX;
    // All that decides what a KV block of these tokens holds.
    let (revision, compute, kv_type) = (&shared.identity.revision, options.compute, options.kv_type);
    scheduling.prefix_scope = format!("{revision} {compute:?} {kv_type:?} {}", shape.kv_block_tokens);
    let scheduler = Scheduler::new(shape, scheduling).map_err(|error| EngineError::BadOption {
        message: format!("--kv-bytes {} is too small: {error}", options.kv_bytes_or_default()),
    })?;
    let max_sequence_tokens = scheduler.rule().max_sequence_tokens;
    let _ = shared.facts.set(ModelFacts { shape, max_sequence_tokens });
    if let Some(host) = model.adapters {
        shared.shelf.open(host);
    }
    // A person is told now; a controller has checked them, and wants the base model to be quick.
    if options.supervision.is_none() {
        shared.shelf.hold_all().map_err(|(name, message)| EngineError::Adapter { name, message })?;
    }
    Ok(StepLoop::new(shared.clone(), inbox, runtime, scheduler, model.forward))
}

/// Signals that end an engine in good order.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn new() -> Result<Self, EngineError> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(EngineError::Signals)?,
            interrupt: signal(SignalKind::interrupt()).map_err(EngineError::Signals)?,
        })
    }

    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// A bound engine.
struct Engine {
    shared: Arc<Shared>,
    life: Arc<Life>,
    voice: Voice,
    drain_timeout: Duration,
    signals: Signals,
    thread: StepThread,
    loading: bool,
}

impl Engine {
    /// Serves until the end is asked for, then drains.
    async fn serve(&mut self) -> Result<(), EngineError> {
        loop {
            tokio::select! {
                loaded = &mut self.thread.loaded, if self.loading => self.loaded(loaded)?,
                _ = &mut self.thread.gone, if !self.loading => return Err(lost_thread()),
                () = self.signals.next() => {
                    self.life.drain_within(self.drain_timeout);
                    break;
                }
                () = self.life.lease_over() => {
                    tracing::warn!("no controller has renewed the lease: finishing streams, then exiting");
                    self.life.drain_within(ORPHAN_DRAIN);
                    break;
                }
                _ = self.life.drain_asked() => break,
            }
        }
        self.drain().await
    }

    /// Waits for the requests in hand, until the deadline or a second signal.
    async fn drain(&mut self) -> Result<(), EngineError> {
        self.shared.set_draining();
        loop {
            tokio::select! {
                loaded = &mut self.thread.loaded, if self.loading => self.loaded(loaded)?,
                _ = &mut self.thread.gone, if !self.loading => return Err(lost_thread()),
                () = self.shared.emptied() => return Ok(()),
                () = self.life.drain_over() => {
                    tracing::warn!("the drain's deadline has passed with streams unfinished");
                    return Ok(());
                }
                () = self.signals.next() => return Ok(()),
            }
        }
    }

    fn loaded(
        &mut self,
        loaded: Result<Result<(), EngineError>, oneshot::error::RecvError>,
    ) -> Result<(), EngineError> {
        self.loading = false;
        loaded.unwrap_or_else(|_| Err(lost_thread()))?;
        let ledger = self.shared.ledger();
        let ready_at_ns = ledger.ready_at_ns.unwrap_or_else(clock::monotonic_ns);
        self.voice.ready(ready_at_ns, &self.shared.identity.model, ledger.since_start_ms(ready_at_ns));
        Ok(())
    }

    /// Ends the step thread after the step in hand. A thread that is still loading ends with the process.
    async fn stop_step_thread(&mut self, messages: &SyncSender<Message>) {
        let _ = messages.try_send(Message::Stop);
        if !self.loading && !self.thread.gone.is_terminated() {
            let _ = tokio::time::timeout(STEP_THREAD_LIMIT, &mut self.thread.gone).await;
        }
    }
}

fn lost_thread() -> EngineError {
    EngineError::StepThread { message: "its last words are above".into() }
}
