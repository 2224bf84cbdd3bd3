//! The GPU view over a library that this machine's compiler makes of tests/stub/nvml.c: what is read, and that
//! a driver that is missing, old, lost or hung is said and holds nobody up. No real card was at hand.

use controller_gpu::{GpuOptions, GpuReading, GpuSource, GpuView, Owner};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// A driver in a folder of its own, and a source that watches it.
struct Stage {
    folder: tempfile::TempDir,
    source: GpuSource,
}

/// Builds the library there.
fn build(folder: &Path, flags: &[&str]) -> PathBuf {
    let library = folder.join("libnvidia-ml.so.1");
    let stub = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stub/nvml.c");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(stub)
        .args(flags)
        .arg("-ldl")
        .status()
        .expect("a C compiler called cc");
    assert!(status.success());
    library
}

fn start(library: PathBuf, folder: tempfile::TempDir, owners: BTreeMap<u32, Owner>) -> Stage {
    let options = GpuOptions {
        library,
        interval: Duration::from_millis(10),
        stale_after: Duration::from_millis(200),
        retry_after: Duration::from_millis(10),
    };
    Stage { folder, source: GpuSource::start(options, Box::new(move || owners.clone())) }
}

impl Stage {
    fn new(state: &str, flags: &[&str]) -> Self {
        Self::owned(state, flags, BTreeMap::new())
    }

    fn owned(state: &str, flags: &[&str], owners: BTreeMap<u32, Owner>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let library = build(folder.path(), flags);
        write_state(folder.path(), state);
        start(library, folder, owners)
    }

    fn state(&self, state: &str) {
        write_state(self.folder.path(), state);
    }

    /// The first view that is as wanted.
    fn until(&self, what: &str, wanted: impl Fn(&GpuView) -> bool) -> GpuView {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let view = self.source.view();
            if wanted(&view) {
                return view;
            }
            assert!(Instant::now() < deadline, "waited for: {what}. Seen: {view:#?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// In one step, so that the library never reads half of it.
fn write_state(folder: &Path, state: &str) {
    let next = folder.join("next");
    std::fs::write(&next, state).expect("a file");
    std::fs::rename(next, folder.join("state")).expect("a rename");
}

fn has_counters(view: &GpuView) -> bool {
    view.gpus.iter().any(|gpu| gpu.gpm.is_some())
}

fn of<'a>(view: &'a GpuView, gpu: &str) -> &'a GpuReading {
    view.gpus.iter().find(|reading| reading.gpu == gpu).unwrap_or_else(|| panic!("{gpu} in {view:#?}"))
}

#[test]
fn without_the_library_that_is_said_and_nothing_is_watched() {
    let folder = tempfile::tempdir().expect("a folder");
    let stage = start(folder.path().join("libnvidia-ml.so.1"), folder, BTreeMap::new());
    let view = stage.until("a summary", |view| !view.summary.is_empty());
    assert!(view.summary.starts_with("gpu: no NVML ("), "{}", view.summary);
    assert!(view.gpus.is_empty());
}

#[test]
fn a_card_tells_everything() {
    let stage = Stage::new("reasons 36\nxids 3\n", &[]);
    let view = stage.until("counters", |view| has_counters(view) && view.gpus[0].xid_errors_total == 3);
    assert_eq!(view.summary, "gpu: 1 device, driver 580.95.05");
    let gpu = of(&view, "0");
    let json = serde_json::to_value(gpu).expect("JSON");
    let want = serde_json::json!({
        "gpu": "0", "uuid": "GPU-0-0", "name": "Stub H100", "observed_at_ns": gpu.observed_at_ns,
        "stale": false, "trouble": null, "mig": false, "busy_ratio": 0.37, "memory_busy_ratio": 0.12,
        "gpm": {"busy_ratio": 0.4, "sm_ratio": 0.4, "occupancy_ratio": 0.4, "tensor_ratio": null, "memory_bandwidth_ratio": 0.4},
        "memory_used_bytes": 1024_u64 << 20, "memory_bytes": 80_u64 << 30, "power_watts": 71.5,
        "temperature_celsius": 41.0, "sm_clock_hertz": 1.98e9, "memory_clock_hertz": 2.619e9,
        "throttled_by": ["power_cap", "thermal_software"], "ecc_corrected_total": 5, "ecc_uncorrected_total": 2,
        "xid_errors_total": 3, "xid_last": 79,
        "pcie_sent_bytes_per_s": 3145728.0, "pcie_received_bytes_per_s": 3145728.0, "processes": [],
    });
    assert_eq!(json, want);
}

#[test]
fn under_mig_the_instances_tell_what_the_device_does_not() {
    let stage = Stage::new("count 2\nmig_1 1\n", &[]);
    let view = stage.until("counters", |view| view.gpus.iter().filter(|gpu| gpu.gpm.is_some()).count() == 3);
    let names: Vec<&str> = view.gpus.iter().map(|gpu| gpu.gpu.as_str()).collect();
    assert_eq!(names, ["0", "1", "1:3", "1:5"]);
    let busy = |gpu: &str| of(&view, gpu).busy();
    assert_eq!([busy("0"), busy("1"), busy("1:3"), busy("1:5")], [Some(0.37), None, Some(0.3), Some(0.5)]);
    assert_eq!(of(&view, "1:3").memory_bytes, Some(40 << 30));
    assert_eq!(of(&view, "1:3").power_watts, None);
    assert_eq!(of(&view, "1").power_watts, Some(71.5));
}

#[test]
fn an_old_driver_tells_what_it_knows() {
    let stage = Stage::new("", &["-DOLD"]);
    let view = stage.until("two readings", |view| !view.gpus.is_empty());
    let first_ns = view.gpus[0].observed_at_ns;
    let view = stage.until("another reading", |view| view.gpus[0].observed_at_ns > first_ns);
    let gpu = of(&view, "0");
    assert_eq!((gpu.gpm, gpu.busy(), gpu.is_up()), (None, Some(0.37), true));
    assert_eq!(gpu.pcie_sent_bytes_per_s, Some(1_024_000.0));
}

#[test]
fn a_lost_card_keeps_its_last_figures_and_the_others_go_on() {
    let stage = Stage::new("count 2\nbusy_1 50\n", &[]);
    stage.until("both", |view| view.gpus.len() == 2 && view.gpus.iter().all(GpuReading::is_up));
    stage.state("count 2\nlost_1 1\nbusy_0 80\n");
    let lost = stage.until("the loss", |view| of(view, "1").trouble.is_some());
    assert_eq!(of(&lost, "1").busy(), Some(0.5));
    let view = stage.until("the other's next", |view| of(view, "0").busy() == Some(0.8));
    assert_eq!(of(&view, "1").observed_at_ns, of(&lost, "1").observed_at_ns);
    assert!(!of(&view, "1").is_up() && of(&view, "0").is_up());
    stage.state("count 2\nbusy_1 60\n");
    stage.until("its return", |view| of(view, "1").is_up() && of(view, "1").busy() == Some(0.6));
}

#[test]
fn a_driver_that_hangs_is_stale_and_holds_nobody_up() {
    let stage = Stage::new("", &[]);
    stage.until("a reading", |view| view.gpus.iter().any(GpuReading::is_up));
    stage.state("hang 1\n");
    let view = stage.until("staleness", |view| view.gpus[0].stale);
    assert_eq!(view.gpus[0].trouble.as_deref(), Some("the driver does not answer"));
    assert_eq!(view.gpus[0].busy(), Some(0.37));
    stage.state("busy 9\n");
    stage.until("its recovery", |view| view.gpus[0].is_up() && view.gpus[0].busy() == Some(0.09));
}

#[test]
fn a_driver_that_starts_late_is_found() {
    let stage = Stage::new("no_driver 1\n", &[]);
    let view = stage.until("a summary", |view| !view.summary.is_empty());
    assert!(view.summary.contains("does not start"), "{}", view.summary);
    stage.state("");
    stage.until("a reading", |view| view.gpus.iter().any(GpuReading::is_up));
}

#[test]
fn a_process_is_joined_with_the_instance_whose_child_it_is() {
    let owner = Owner { instance: "m-1".to_owned(), model: "m".to_owned() };
    let mut worker = Command::new("sleep").arg("60").spawn().expect("sleep");
    let state = format!("pid {}\n", worker.id());
    let stage = Stage::owned(&state, &[], BTreeMap::from([(std::process::id(), owner)]));
    let view = stage.until("the process", |view| view.gpus.iter().any(|gpu| !gpu.processes.is_empty()));
    worker.kill().and_then(|()| worker.wait()).expect("its end");
    let process = &view.gpus[0].processes[0];
    assert_eq!((process.memory_bytes, process.instance.as_deref()), (Some(7 << 20), Some("m-1")));
}
