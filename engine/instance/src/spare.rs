//! A spare process: all of an engine but its model. It listens, and waits to be told over its control socket what to
//! serve; from then on it is an engine like any other. So a start costs neither exec nor runtime.

use crate::clock;
use crate::control::{self, Adopted, Control, Seat, SpareSeat};
use crate::cores;
use crate::error::EngineError;
use crate::heads::Heads;
use crate::life::Life;
use crate::load::{self, Loader};
use crate::notice::Voice;
use crate::options::EngineOptions;
use crate::run::{Signals, bind, seated, serve_on};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Reads the arguments of `foreshock engine`, as the command line does; the error is for people.
pub type ParseArgs = Box<dyn Fn(&[String]) -> Result<EngineOptions, String> + Send + Sync>;

/// One spare process.
#[derive(Clone, Debug)]
pub struct SpareOptions {
    /// Its identity as long as it is one.
    pub instance: String,
    /// Path of the control socket, made here.
    pub control: PathBuf,
    /// With no `Renew` for this long, it exits.
    pub lease: Duration,
}

/// Runs a spare process, and the engine that it becomes, until that ends.
pub async fn run_spare(options: SpareOptions, parse: ParseArgs) -> Result<(), EngineError> {
    run_spare_with(options, parse, Box::new(load::load_checkpoint)).await
}

/// As [`run_spare`], with another way to come by a device.
pub async fn run_spare_with(options: SpareOptions, parse: ParseArgs, loader: Loader) -> Result<(), EngineError> {
    let result = wait_and_serve(options, parse, loader).await;
    if let Err(error) = &result {
        Voice::Controller.failed(&error.to_string());
    }
    result
}

async fn wait_and_serve(options: SpareOptions, parse: ParseArgs, loader: Loader) -> Result<(), EngineError> {
    if options.lease.is_zero() {
        return Err(EngineError::BadOption { message: "--lease-ms is 0: the process would exit at once".into() });
    }
    let (listener, addr) = bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).await?;
    let mut signals = Signals::new()?;
    let life = Arc::new(Life::new(Some(options.lease)));
    let (adopted, mut adoption) = oneshot::channel();
    let heads = Heads::default();
    let port = addr.port();
    let socket = options.control.clone();
    let adopt = {
        let heads = heads.clone();
        move |args: &[String]| adopt(args, &parse, &heads, (port, &socket))
    };
    let seat = SpareSeat::new(options.instance, port, heads, Box::new(adopt), adopted);
    let control = Arc::new(Control::new(life.clone(), Seat::Spare(seat)));
    let mut path = control.open(&options.control)?;
    let adopted = tokio::select! {
        adopted = &mut adoption => adopted,
        () = signals.next() => return Ok(()),
        () = life.lease_over() => return Ok(()),
        _ = life.drain_asked() => return Ok(()),
    };
    // Fails only when the control socket is gone, and with it everybody who could ask.
    let Ok(Adopted { options, shared, cores }) = adopted else { return Ok(()) };
    if let Some(supervision) = &options.supervision {
        path.moved(&supervision.control);
        tracing::info!(instance = supervision.instance, "a spare process adopts a model");
    }
    serve_on((listener, addr, signals), (life, shared), options, cores, loader).await
}

/// Becomes the engine of these arguments, as far as others can see it. The error is for people.
fn adopt(
    args: &[String],
    parse: &ParseArgs,
    heads: &Heads,
    (port, socket): (u16, &PathBuf),
) -> Result<Adopted, String> {
    let began_at_ns = clock::monotonic_ns();
    let mut options = parse(args)?;
    options.check().map_err(|error| error.to_string())?;
    let Some(supervision) = options.supervision.clone() else {
        return Err("--control is missing: a spare process serves under a controller".into());
    };
    options.head = options.store.as_ref().and_then(|store| heads.get(&store.spec()));
    let cores = cores::confine(&options.cores).map_err(|error| error.to_string())?;
    let shared = seated(&options, port, cores.clone(), began_at_ns).map_err(|error| error.to_string())?;
    shared.ledger().phases.spare = true;
    control::rename(socket, &supervision.control)?;
    Ok(Adopted { options, shared, cores })
}
