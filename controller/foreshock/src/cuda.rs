//! Looks at the CUDA calls of engine instances for a short window now and then (`--cuda-probes`): each counted call
//! costs the engine microseconds, so most of the time nothing is attached.

use controller_daemon::View;
use controller_witness::{CudaCounters, CudaError, Witness};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use telemetry::{CUDA_BYTES_PER_SECOND, CUDA_CALLS_PER_SECOND};
use tokio::time::{Instant, sleep};

/// How long calls are counted.
const WINDOW: Duration = Duration::from_secs(2);
/// From the end of a window to the next.
const PAUSE: Duration = Duration::from_secs(28);
/// Until another look, where no instance uses CUDA.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Runs until it is dropped.
pub async fn sample(witness: Arc<Witness>, view: View) {
    let mut known = BTreeSet::new();
    loop {
        let instances: Vec<(u32, String)> =
            view.instances().values().map(|instance| (instance.pid, instance.model.clone())).collect();
        let attaching = witness.clone();
        // Finding the functions reads a whole library.
        let watched = tokio::task::spawn_blocking(move || attach(&attaching, instances)).await.unwrap_or_default();
        if watched.is_empty() {
            export(&mut known, &BTreeMap::new(), WINDOW);
            sleep(LOOK_AGAIN).await;
            continue;
        }
        let began = Instant::now();
        sleep(WINDOW).await;
        let mut counted: BTreeMap<String, CudaCounters> = BTreeMap::new();
        for (pid, model) in watched {
            let calls = witness.unwatch_cuda(pid).unwrap_or_default();
            let sum = counted.entry(model).or_default();
            *sum = add(*sum, calls);
        }
        export(&mut known, &counted, began.elapsed());
        sleep(PAUSE).await;
    }
}

/// The instances that use CUDA, from now on counted.
fn attach(witness: &Witness, mut instances: Vec<(u32, String)>) -> Vec<(u32, String)> {
    instances.retain(|(pid, model)| match witness.watch_cuda(*pid) {
        Ok(_) => true,
        // A CPU engine, or one that has just ended.
        Err(CudaError::NoLibrary(_) | CudaError::Maps { .. }) => false,
        Err(error) => {
            tracing::warn!(pid, model, %error, "an engine's CUDA calls are not counted");
            false
        }
    });
    instances
}

fn add(sum: CudaCounters, one: CudaCounters) -> CudaCounters {
    CudaCounters {
        launches: sum.launches + one.launches,
        graph_launches: sum.graph_launches + one.graph_launches,
        copies: sum.copies + one.copies,
        copied_bytes: sum.copied_bytes + one.copied_bytes,
        allocations: sum.allocations + one.allocations,
        allocated_bytes: sum.allocated_bytes + one.allocated_bytes,
        frees: sum.frees + one.frees,
        contexts: sum.contexts + one.contexts,
    }
}

/// Rates of the last window; those of models that are gone go back to 0.
fn export(known: &mut BTreeSet<String>, counted: &BTreeMap<String, CudaCounters>, over: Duration) {
    known.extend(counted.keys().cloned());
    for model in known.iter() {
        let calls = counted.get(model).copied().unwrap_or_default();
        let rate = |count: u64| count as f64 / over.as_secs_f64();
        for (call, count) in [
            ("launch", calls.launches),
            ("graph_launch", calls.graph_launches),
            ("copy", calls.copies),
            ("allocate", calls.allocations),
            ("free", calls.frees),
            ("context", calls.contexts),
        ] {
            metrics::gauge!(CUDA_CALLS_PER_SECOND.name, "model" => model.clone(), "call" => call).set(rate(count));
        }
        for (call, bytes) in [("copy", calls.copied_bytes), ("allocate", calls.allocated_bytes)] {
            metrics::gauge!(CUDA_BYTES_PER_SECOND.name, "model" => model.clone(), "call" => call).set(rate(bytes));
        }
    }
    known.retain(|model| counted.contains_key(model));
}
