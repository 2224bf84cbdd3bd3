//! What one GPU, or one MIG instance of it, was seen to do. A figure that a card or a driver does not give is none.

use serde::Serialize;

/// One GPU or MIG instance.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GpuReading {
    /// The device's index, and after a colon the id of a MIG instance: `0`, `0:3`.
    pub gpu: String,
    pub uuid: String,
    pub name: String,
    /// CLOCK_MONOTONIC, ns: when these figures were read. Older than the others' where the device answers no more.
    pub observed_at_ns: u64,
    /// The figures are the last ones known, and too old to go by.
    pub stale: bool,
    /// Why there are no newer ones, in the driver's words.
    pub trouble: Option<String>,
    /// MIG is on: utilisation is known of the instances only.
    pub mig: bool,
    /// Share of the time in which some kernel ran, 0 to 1. The driver gives none under MIG.
    pub busy_ratio: Option<f64>,
    /// Share of the time in which memory was read or written, 0 to 1.
    pub memory_busy_ratio: Option<f64>,
    /// Counters of the card itself, from Hopper on, also per MIG instance.
    pub gpm: Option<GpmReading>,
    pub memory_used_bytes: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub power_watts: Option<f64>,
    pub temperature_celsius: Option<f64>,
    pub sm_clock_hertz: Option<f64>,
    pub memory_clock_hertz: Option<f64>,
    /// Why clocks are held down; being idle is none of them.
    pub throttled_by: Vec<&'static str>,
    /// Memory errors since the driver was loaded.
    pub ecc_corrected_total: Option<u64>,
    pub ecc_uncorrected_total: Option<u64>,
    /// Critical errors (Xid) since watching began, and the number of the last one.
    pub xid_errors_total: u64,
    pub xid_last: Option<u64>,
    /// From the card, and to it.
    pub pcie_sent_bytes_per_s: Option<f64>,
    pub pcie_received_bytes_per_s: Option<f64>,
    pub processes: Vec<GpuProcess>,
}

/// Shares from 0 to 1 between two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct GpmReading {
    /// Any work at all on the graphics or compute engine.
    pub busy_ratio: Option<f64>,
    /// Streaming multiprocessors with a warp assigned.
    pub sm_ratio: Option<f64>,
    /// Warps resident of those that fit.
    pub occupancy_ratio: Option<f64>,
    /// Tensor cores at work.
    pub tensor_ratio: Option<f64>,
    /// Memory bandwidth in use.
    pub memory_bandwidth_ratio: Option<f64>,
}

/// A process with memory on the GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GpuProcess {
    pub pid: u32,
    pub memory_bytes: Option<u64>,
    /// The engine instance that it is, or is a descendant of, and its model.
    pub instance: Option<String>,
    pub model: Option<String>,
}

impl GpuReading {
    /// The figures were read and are fresh.
    pub fn is_up(&self) -> bool {
        !self.stale && self.trouble.is_none()
    }

    /// Share of the time at work, from the card's own counters where the driver gives none.
    pub fn busy(&self) -> Option<f64> {
        self.busy_ratio.or_else(|| self.gpm.and_then(|gpm| gpm.busy_ratio))
    }
}
