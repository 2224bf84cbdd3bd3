//! The two threads: one asks the driver and may hang in it, the other keeps what was heard and never does.

use crate::export;
use crate::nvml::Sampler;
use crate::owner::{self, Owners, owner_of};
use crate::reading::GpuReading;
use nvml_wrapper::Nvml;
use nvml_wrapper::error::NvmlError;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How to watch.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// The management library: a path, or a name for the dynamic linker.
    pub library: PathBuf,
    /// Between two readings.
    pub interval: Duration,
    /// Without a reading for this long, the last one is stale.
    pub stale_after: Duration,
    /// A driver that was there and is gone is looked for again after this long.
    pub retry_after: Duration,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self {
            library: "libnvidia-ml.so.1".into(),
            interval: Duration::from_secs(1),
            stale_after: Duration::from_secs(5),
            retry_after: Duration::from_secs(30),
        }
    }
}

/// What is known now.
#[derive(Clone, Debug, Default, Serialize)]
pub struct GpuView {
    /// One line: what is watched, or why nothing is.
    pub summary: String,
    pub gpus: Vec<GpuReading>,
}

/// The GPUs of this node, watched until it is dropped.
pub struct GpuSource {
    view: Arc<Mutex<GpuView>>,
    stop: Arc<AtomicBool>,
}

/// What the driver's thread tells.
enum Told {
    Summary(String),
    Reading(Vec<GpuReading>),
}

/// A reading that nobody has taken yet is enough; the driver's thread waits with the next.
const TOLD_AHEAD: usize = 2;

impl GpuSource {
    /// Starts watching and returns at once, whatever the driver does. Metrics need a recorder installed before.
    pub fn start(options: GpuOptions, owners: Owners) -> Self {
        let source = Self { view: Arc::default(), stop: Arc::default() };
        let (teller, told) = mpsc::sync_channel(TOLD_AHEAD);
        let (stop, view, stale_after) = (source.stop.clone(), source.view.clone(), options.stale_after);
        // Neither is ever joined: one that hangs in the driver ends with the process.
        let driver = thread::Builder::new().name("gpu-driver".into()).spawn(move || watch(&options, &stop, &teller));
        let keeper =
            thread::Builder::new().name("gpu-keeper".into()).spawn(move || keep(&told, &view, stale_after, &owners));
        if let Some(error) = driver.err().or(keeper.err()) {
            locked(&source.view).summary = format!("gpu: not watched, no thread could be started ({error})");
        }
        source
    }

    /// What is known now; never waits for the driver.
    pub fn view(&self) -> GpuView {
        locked(&self.view).clone()
    }
}

impl Drop for GpuSource {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The driver's thread: finds the driver, reads it, and finds it again when it was reloaded.
fn watch(options: &GpuOptions, stop: &AtomicBool, teller: &SyncSender<Told>) {
    let mut said = String::new();
    while !stop.load(Ordering::Relaxed) {
        let outcome = Nvml::builder().lib_path(options.library.as_os_str()).init();
        let summary = match &outcome {
            Ok(nvml) => found(nvml),
            Err(error) => missing(options, error),
        };
        if summary != said {
            tracing::info!("{summary}");
            said.clone_from(&summary);
        }
        if teller.send(Told::Summary(summary)).is_err() {
            return;
        }
        match outcome {
            Ok(nvml) => read_while_it_answers(&nvml, options, stop, teller),
            Err(NvmlError::LibloadingError(_)) => return,
            Err(_) => {}
        }
        thread::sleep(options.retry_after);
    }
}

fn read_while_it_answers(nvml: &Nvml, options: &GpuOptions, stop: &AtomicBool, teller: &SyncSender<Told>) {
    let mut sampler = Sampler::new(nvml);
    while !stop.load(Ordering::Relaxed) {
        let readings = match sampler.read() {
            Ok(readings) => readings,
            Err(error) => {
                tracing::warn!(%error, "the GPU driver answers no more");
                return;
            }
        };
        if teller.send(Told::Reading(readings)).is_err() {
            return;
        }
        thread::sleep(options.interval);
    }
}

fn found(nvml: &Nvml) -> String {
    let driver = nvml.sys_driver_version().unwrap_or_else(|_| "of an unknown version".to_owned());
    match nvml.device_count() {
        Ok(1) => format!("gpu: 1 device, driver {driver}"),
        Ok(count) => format!("gpu: {count} devices, driver {driver}"),
        Err(error) => format!("gpu: driver {driver} does not count its devices ({error})"),
    }
}

fn missing(options: &GpuOptions, error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) => {
            format!("gpu: no NVML ({} is not installed); GPUs are not watched", options.library.display())
        }
        error => format!("gpu: NVML is there and does not start ({error}); GPUs are not watched until it does"),
    }
}

/// The keeper's thread: keeps, joins with instances, exports.
fn keep(told: &Receiver<Told>, view: &Mutex<GpuView>, stale_after: Duration, owners: &Owners) {
    let mut exported = export::Exported::default();
    loop {
        let heard = told.recv_timeout(stale_after);
        let ended = matches!(heard, Err(RecvTimeoutError::Disconnected));
        let gpus = match heard {
            Ok(Told::Summary(summary)) => {
                locked(view).summary = summary;
                continue;
            }
            Ok(Told::Reading(mut readings)) => {
                join(&mut readings, owners);
                readings
            }
            Err(_) => {
                let mut gpus = locked(view).gpus.clone();
                for gpu in &mut gpus {
                    gpu.stale = true;
                    gpu.trouble.get_or_insert_with(|| "the driver does not answer".to_owned());
                }
                gpus
            }
        };
        exported.export(&gpus);
        locked(view).gpus = gpus;
        if ended {
            return;
        }
    }
}

/// Names the instances that processes are of.
fn join(readings: &mut [GpuReading], owners: &Owners) {
    let owners = owners();
    for process in readings.iter_mut().flat_map(|reading| &mut reading.processes) {
        if let Some(owner) = owner_of(process.pid, &owners, owner::parent) {
            process.instance = Some(owner.instance.clone());
            process.model = Some(owner.model.clone());
        }
    }
}
