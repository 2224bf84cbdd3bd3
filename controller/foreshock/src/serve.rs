//! `foreshock serve`: puts gateway, controller and witness together, and takes them apart in the right order.

use crate::cli::{self, Compute, ServeArgs};
use crate::config::{self, InputError, Node};
use crate::{cuda, logging, models, recorder};
use anyhow::{Context, Result};
use controller_core::outside::Slo;
use controller_core::policy::TierRule;
use controller_core::snapshot::Turn;
use controller_daemon::{
    Admin, ComputeMode, Daemon, DaemonConfig, DaemonError, GatewayReading, GatewaySignal, KernelReading, KernelSignal,
    KvType, ModelDemand, ModelStore, OutsideWatch,
};
use controller_gateway::{Gateway, GatewayOptions};
use controller_gpu::{GpuOptions, GpuSource, Owner, Owners};
use controller_witness::{Budget, PortRole, Witness, WitnessOptions};
use engine_http::{Limits, RouteOptions, ServeOptions};
use metrics_exporter_prometheus::PrometheusHandle;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use warp::{Filter, Reply};

/// Time that bytes of finished answers get to reach their clients.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The kernel's news of demand wake the loop this often at most: the gateway's own news of a held request come at once,
/// and this is for when it is too busy to have any.
const KERNEL_WAKE_SPACING: Duration = Duration::from_millis(5);

/// Runs until SIGTERM or SIGINT.
pub fn run(args: ServeArgs) -> Result<()> {
    config::validate(&args)?;
    let node = config::node(&args)?;
    let daemon_config = daemon_config(&args, node)?;
    daemon_config.validate().map_err(|error| InputError(error.to_string()))?;
    logging::start(args.log_json);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")?;
    runtime.block_on(serve(args, daemon_config))
}

fn daemon_config(args: &ServeArgs, node: Node) -> Result<DaemonConfig> {
    // A model at zero costs its next request a miss; priced in core-seconds, that is the time an idle core
    // is worth holding for it. A further instance only saves waiting, so it is worth half as much.
    let policy = controller_core::Policy {
        miss_cost: args.idle_seconds,
        start_cost: args.idle_seconds / 2.0,
        start_timeout_ms: args.start_timeout_ms,
        tiers: match args.tiers {
            cli::Tiers::Planned => TierRule::Planned,
            cli::Tiers::Lru => TierRule::Lru,
            cli::Tiers::None => TierRule::None,
        },
        ..controller_core::Policy::default()
    };
    Ok(DaemonConfig {
        state_dir: config::state_dir(&args.state)?,
        cores: node.cores,
        cores_per_instance: node.cores_per_instance,
        memory_budget_bytes: node.memory_budget_bytes,
        segments: config::segments_dir(&args.segments),
        kernel_layout: engine_instance::CpuBands::LAYOUT.to_owned(),
        idle_weights_bytes: args.idle_weights_bytes.unwrap_or(node.memory_budget_bytes / 2),
        kv_bytes: args.kv_bytes,
        lease_ms: args.lease_ms,
        drain_deadline_ms: args.drain_timeout_ms,
        engine_exe: std::env::current_exe().context("finding this program's own file")?,
        compute: match args.compute {
            Compute::F32 => ComputeMode::F32,
            Compute::Fast => ComputeMode::Fast,
        },
        kv_type: args.kv_type.map(|kv_type| match kv_type {
            cli::KvType::F16 => KvType::F16,
            cli::KvType::Q8 => KvType::Q8,
        }),
        spares: args.spares,
        advise: args.advise,
        drain_on_shutdown: true,
        policy,
    })
}

async fn serve(args: ServeArgs, daemon_config: DaemonConfig) -> Result<()> {
    let metrics = recorder::install()?;
    let data = bind(args.listen, "--listen").await?;
    let admin = bind(args.admin, "--admin").await?;
    let data_addr = data.local_addr()?;
    let mut daemon = Daemon::start(daemon_config).await.map_err(classify)?;
    let witness = Arc::new(Witness::attach(witness_options(&args))?);
    tracing::info!("{}", witness.summary());
    let gateway = Gateway::new(gateway_options(&args), daemon.routes());
    wire_signals(&mut daemon, &gateway, &witness, data_addr.port());
    witness.watch(data_addr.port(), PortRole::Gateway)?;

    if args.cuda_probes {
        tokio::spawn(cuda::sample(witness.clone(), daemon.view()));
    }
    let gpus = Arc::new(GpuSource::start(GpuOptions::default(), owners(&daemon)));
    let data_server = spawn_data(data, &gateway, metrics.clone());
    let admin_addr = admin.local_addr()?;
    let store = models::stored::store(&args.state, &args.segments)?;
    let admin_server = spawn_admin(admin, store, &daemon, &gateway, &witness, gpus, metrics);
    tracing::info!(data = %data_addr, admin = %admin_addr, state = %daemon.state_dir().display(), "serving");

    let (stop_loop, loop_stopped) = oneshot::channel::<()>();
    let looping = tokio::spawn(daemon.run(async move {
        let _ = loop_stopped.await;
    }));
    let mut looping = std::pin::pin!(looping);
    let ended_early = tokio::select! {
        outcome = &mut looping => Some(outcome),
        () = asked_to_stop() => None,
    };
    if let Some(outcome) = ended_early {
        return outcome.context("the controller's loop panicked")?.map_err(anyhow::Error::from);
    }
    drain(&gateway, Duration::from_millis(args.drain_timeout_ms)).await;
    data_server.stop().await;
    let _ = stop_loop.send(());
    let outcome = looping.await.context("the controller's loop panicked")?;
    admin_server.stop().await;
    tracing::info!("stopped");
    outcome.map_err(anyhow::Error::from)
}

fn witness_options(args: &ServeArgs) -> WitnessOptions {
    let budget = Budget { cpu_ratio: args.probe_budget / 100.0, ..Budget::default() };
    WitnessOptions { enabled: !args.no_probes, budget, ..WitnessOptions::default() }
}

/// A state folder that cannot be used is the user's to mend.
fn classify(error: DaemonError) -> anyhow::Error {
    match error {
        DaemonError::Registry(_)
        | DaemonError::Config(_)
        | DaemonError::Lock(_)
        | DaemonError::StatePathTooLong { .. } => InputError(error.to_string()).into(),
        other => other.into(),
    }
}

async fn bind(addr: SocketAddr, option: &str) -> Result<TcpListener> {
    TcpListener::bind(addr)
        .await
        .with_context(|| format!("cannot listen on {addr}; stop what uses it or choose another with {option}"))
}

fn gateway_options(args: &ServeArgs) -> GatewayOptions {
    GatewayOptions {
        hold_limit: args.hold_limit,
        hold_timeout: Duration::from_millis(args.hold_timeout_ms),
        ..GatewayOptions::default()
    }
}

/// Makes gateway and kernel observable to the loop, and the loop's engines to the witness.
fn wire_signals(daemon: &mut Daemon, gateway: &Gateway, witness: &Arc<Witness>, port: u16) {
    let reading = gateway.clone();
    daemon.add_signal(GatewaySignal(move || gateway_reading(&reading)));
    let kernel = witness.clone();
    daemon.add_signal(KernelSignal(move || kernel_reading(&kernel, port)));
    daemon.set_witness(witness);
    let work = gateway.clone();
    daemon.set_load(Arc::new(move |instance| work.load(instance)));
    let (wake, changed) = (daemon.wake(), gateway.clone());
    tokio::spawn(async move {
        loop {
            changed.demand_changed().await;
            wake.notify_one();
        }
    });
    let (wake, seen) = (daemon.wake(), witness.clone());
    tokio::spawn(async move {
        loop {
            seen.demand_seen().await;
            wake.notify_one();
            sleep(KERNEL_WAKE_SPACING).await;
        }
    });
}

/// Which instance a process on a GPU belongs to.
fn owners(daemon: &Daemon) -> Owners {
    let view = daemon.view();
    Box::new(move || {
        let instances = view.instances();
        let owner = |id: &String, model: &String| Owner { instance: id.clone(), model: model.clone() };
        instances.iter().map(|(id, instance)| (instance.pid, owner(id, &instance.model))).collect()
    })
}

fn gateway_reading(gateway: &Gateway) -> GatewayReading {
    let models = gateway.demand().into_iter().map(|(name, demand)| {
        let demand = ModelDemand {
            arrivals_total: demand.arrivals_total,
            held: demand.held,
            in_flight: demand.in_flight,
            prompt_tokens_total: demand.prompt_tokens_total,
            output_tokens_total: demand.output_tokens_total,
            turns_total: demand.turns_total,
            turns: demand.turns.iter().map(|turn| Turn { session: turn.session, at_ns: turn.at_ns }).collect(),
        };
        (name, demand)
    });
    GatewayReading { requests_seen_total: Some(gateway.http_requests_total()), models: models.collect() }
}

fn kernel_reading(witness: &Witness, port: u16) -> Option<KernelReading> {
    if !witness.sees_requests() {
        return None;
    }
    witness.counters(port).map(|counters| KernelReading {
        requests_total: counters.requests,
        syns_total: counters.syns,
        connections_total: counters.connections,
    })
}

/// A server and the way to stop it.
struct Running {
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    async fn stop(self) {
        let _ = self.stop.send(());
        let _ = timeout(STOP_LIMIT * 2, self.task).await;
    }
}

fn spawn(
    listener: TcpListener,
    filter: warp::filters::BoxedFilter<(warp::reply::Response,)>,
    drain: Duration,
) -> Running {
    let (stop, stopped) = oneshot::channel::<()>();
    let shutdown = async move {
        let _ = stopped.await;
    };
    let options = ServeOptions { drain_deadline: drain, ..ServeOptions::default() };
    Running { stop, task: tokio::spawn(engine_http::serve(listener, filter, shutdown, options)) }
}

fn spawn_data(listener: TcpListener, gateway: &Gateway, metrics: PrometheusHandle) -> Running {
    let limits = Limits::default();
    let options = RouteOptions { limits, access: gateway.access_hook() };
    let api = engine_http::routes(gateway.clone(), options);
    let metrics = engine_http::metrics_route(move || metrics.render());
    let filter = engine_http::with_fallback(api.or(metrics).unify().boxed(), limits);
    // Requests have drained before this server stops: what is left is bytes on their way.
    spawn(listener, gateway.counted(filter), STOP_LIMIT)
}

fn spawn_admin(
    listener: TcpListener,
    store: ModelStore,
    daemon: &Daemon,
    gateway: &Gateway,
    witness: &Arc<Witness>,
    gpus: Arc<GpuSource>,
    metrics: PrometheusHandle,
) -> Running {
    let (records, kernel, probes) = (gateway.clone(), witness.clone(), witness.clone());
    let outside = OutsideWatch::start(witness, Slo::default());
    let admin = Admin {
        view: daemon.view(),
        engines: daemon.engine_views(),
        catalog: daemon.catalog(),
        routes: gateway.followed(),
        state_dir: daemon.state_dir().to_owned(),
        store,
        requests: Arc::new(
            move |limit| serde_json::json!({ "kernel": kernel.recent(limit), "gateway": records.access_records(limit) }),
        ),
        probes: Arc::new(move |_| {
            serde_json::json!({
                "summary": probes.summary(),
                "probes": probes.probes(),
                "ports": probes.snapshot(),
                "events_lost_total": probes.events_lost(),
                "cost": probes.cost(),
            })
        }),
        outside: Arc::new(move |port| outside.view(port)),
        gpus: Arc::new(move |_| serde_json::json!(gpus.view())),
        metrics: Arc::new(move || metrics.render()),
    };
    let filter = controller_daemon::admin::routes(admin).map(Reply::into_response).boxed();
    spawn(listener, filter, STOP_LIMIT)
}

/// Resolves on the first SIGTERM or SIGINT; the second ends the process on the spot.
async fn asked_to_stop() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("cannot watch for signals: stop this process with SIGKILL");
        return std::future::pending().await;
    };
    let mut next = async || {
        tokio::select! {
            _ = term.recv() => (),
            _ = int.recv() => (),
        }
    };
    next().await;
    tracing::info!("stopping: new requests are refused, running ones finish (a second signal stops at once)");
    tokio::spawn(async move {
        let mut again = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        if let (Ok(term), Ok(int)) = (&mut again.0, &mut again.1) {
            tokio::select! {
                _ = term.recv() => (),
                _ = int.recv() => (),
            }
            std::process::exit(i32::from(config::EXIT_OTHER));
        }
    });
}

async fn drain(gateway: &Gateway, deadline: Duration) {
    gateway.drain();
    if timeout(deadline, gateway.idle()).await.is_err() {
        tracing::warn!(left = gateway.active_requests(), "requests were cut off by the drain deadline");
    }
}
