//! Readings as metrics, under the names of the metric table.

use crate::nvml::throttle_reasons;
use crate::reading::GpuReading;
use metrics::{counter, gauge};
use std::collections::{BTreeMap, BTreeSet};
use telemetry::{
    GPU_BUSY_RATIO, GPU_CLOCK_HERTZ, GPU_COUNTER_RATIO, GPU_ECC_ERRORS_TOTAL, GPU_INFO, GPU_MEMORY_BYTES,
    GPU_MEMORY_USED_BYTES, GPU_MODEL_MEMORY_BYTES, GPU_PCIE_BYTES_PER_SECOND, GPU_POWER_WATTS, GPU_TEMPERATURE_CELSIUS,
    GPU_THROTTLED, GPU_UP, GPU_XID_ERRORS_TOTAL, Metric,
};

/// What has been exported, so that what is gone goes back to 0 instead of standing for ever.
#[derive(Default)]
pub(crate) struct Exported {
    gpus: BTreeSet<String>,
    models: BTreeSet<(String, String)>,
}

fn set(metric: &Metric, gpu: &str, value: Option<f64>) {
    if let Some(value) = value {
        gauge!(metric.name, "gpu" => gpu.to_owned()).set(value);
    }
}

impl Exported {
    pub fn export(&mut self, readings: &[GpuReading]) {
        let present: BTreeSet<String> = readings.iter().map(|reading| reading.gpu.clone()).collect();
        for gone in self.gpus.difference(&present) {
            set(&GPU_UP, gone, Some(0.0));
        }
        self.gpus = present;
        for reading in readings {
            set(&GPU_UP, &reading.gpu, Some(f64::from(u8::from(reading.is_up()))));
            // What is stale is not exported again: the last figures stand, beside an `up` of 0.
            if reading.is_up() {
                figures(reading);
                health(reading);
            }
        }
        self.models(readings);
    }

    fn models(&mut self, readings: &[GpuReading]) {
        let mut bytes: BTreeMap<(String, String), u64> = self.models.iter().cloned().map(|key| (key, 0)).collect();
        for reading in readings {
            for process in &reading.processes {
                let Some(model) = &process.model else { continue };
                *bytes.entry((reading.gpu.clone(), model.clone())).or_default() += process.memory_bytes.unwrap_or(0);
            }
        }
        for ((gpu, model), bytes) in &bytes {
            let labels = [("gpu", gpu.clone()), ("model", model.clone())];
            gauge!(GPU_MODEL_MEMORY_BYTES.name, &labels).set(*bytes as f64);
        }
        self.models = bytes.into_iter().filter(|(_, bytes)| *bytes > 0).map(|(key, _)| key).collect();
    }
}

fn figures(reading: &GpuReading) {
    let gpu = &reading.gpu;
    let labels = [("gpu", gpu.clone()), ("uuid", reading.uuid.clone()), ("name", reading.name.clone())];
    gauge!(GPU_INFO.name, &labels).set(1.0);
    set(&GPU_BUSY_RATIO, gpu, reading.busy());
    set(&GPU_MEMORY_USED_BYTES, gpu, reading.memory_used_bytes.map(|bytes| bytes as f64));
    set(&GPU_MEMORY_BYTES, gpu, reading.memory_bytes.map(|bytes| bytes as f64));
    for (direction, rate) in [("sent", reading.pcie_sent_bytes_per_s), ("received", reading.pcie_received_bytes_per_s)]
    {
        if let Some(rate) = rate {
            gauge!(GPU_PCIE_BYTES_PER_SECOND.name, "gpu" => gpu.clone(), "direction" => direction).set(rate);
        }
    }
    let gpm = reading.gpm.unwrap_or_default();
    for (unit, ratio) in [
        ("sm", gpm.sm_ratio),
        ("occupancy", gpm.occupancy_ratio),
        ("tensor", gpm.tensor_ratio),
        ("memory_bandwidth", gpm.memory_bandwidth_ratio),
    ] {
        if let Some(ratio) = ratio {
            gauge!(GPU_COUNTER_RATIO.name, "gpu" => gpu.clone(), "unit" => unit).set(ratio);
        }
    }
}

fn health(reading: &GpuReading) {
    let gpu = &reading.gpu;
    set(&GPU_POWER_WATTS, gpu, reading.power_watts);
    set(&GPU_TEMPERATURE_CELSIUS, gpu, reading.temperature_celsius);
    for (clock, hertz) in [("sm", reading.sm_clock_hertz), ("memory", reading.memory_clock_hertz)] {
        if let Some(hertz) = hertz {
            gauge!(GPU_CLOCK_HERTZ.name, "gpu" => gpu.clone(), "clock" => clock).set(hertz);
        }
    }
    // A device that tells no clock tells no reason either.
    for reason in throttle_reasons().filter(|_| reading.sm_clock_hertz.is_some()) {
        let is_throttled = reading.throttled_by.contains(&reason);
        gauge!(GPU_THROTTLED.name, "gpu" => gpu.clone(), "reason" => reason).set(f64::from(u8::from(is_throttled)));
    }
    for (kind, total) in [("corrected", reading.ecc_corrected_total), ("uncorrected", reading.ecc_uncorrected_total)] {
        if let Some(total) = total {
            counter!(GPU_ECC_ERRORS_TOTAL.name, "gpu" => gpu.clone(), "kind" => kind).absolute(total);
        }
    }
    counter!(GPU_XID_ERRORS_TOTAL.name, "gpu" => gpu.clone()).absolute(reading.xid_errors_total);
}
