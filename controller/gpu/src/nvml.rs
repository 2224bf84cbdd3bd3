//! One reading of all devices. It holds what a reading needs of the one before: the card's own counters (GPM)
//! are differences of two samples, and critical errors are events.

use crate::reading::{GpmReading, GpuProcess, GpuReading};
use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{Clock, EccCounter, MemoryError, PcieUtilCounter, TemperatureSensor};
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::enums::gpm::GpmMetricId;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::event::EventSet;
use nvml_wrapper::gpm::{GpmSample, gpm_metrics_get};
use nvml_wrapper::{Device, Nvml};
use rustix::time::{ClockId, clock_gettime};
use std::collections::{BTreeMap, BTreeSet};

/// Critical errors taken in per device and reading; the rest waits for the next one.
const XIDS_AT_ONCE: usize = 64;
/// What is asked of the card's own counters, all in percent but for the last two, which are MiB/s.
const GPM_METRICS: [GpmMetricId; 7] = [
    GpmMetricId::GraphicsUtil,
    GpmMetricId::SmUtil,
    GpmMetricId::SmOccupancy,
    GpmMetricId::AnyTensorUtil,
    GpmMetricId::DramBwUtil,
    GpmMetricId::PcieTxPerSec,
    GpmMetricId::PcieRxPerSec,
];
const BYTES_PER_MIB: f64 = 1_048_576.0;
/// Reasons for low clocks, as labels.
const REASONS: [(ThrottleReasons, &str); 8] = [
    (ThrottleReasons::SW_POWER_CAP, "power_cap"),
    (ThrottleReasons::HW_SLOWDOWN, "hardware_slowdown"),
    (ThrottleReasons::SYNC_BOOST, "sync_boost"),
    (ThrottleReasons::SW_THERMAL_SLOWDOWN, "thermal_software"),
    (ThrottleReasons::HW_THERMAL_SLOWDOWN, "thermal_hardware"),
    (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power_brake"),
    (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "application_clocks"),
    (ThrottleReasons::DISPLAY_CLOCK_SETTING, "display_clocks"),
];

/// Every reason that [`GpuReading::throttled_by`] can name.
pub(crate) fn throttle_reasons() -> impl Iterator<Item = &'static str> {
    REASONS.iter().map(|(_, label)| *label)
}

/// What is kept between readings.
pub(crate) struct Sampler<'nvml> {
    nvml: &'nvml Nvml,
    last: BTreeMap<String, GpuReading>,
    events: BTreeMap<u32, EventSet<'nvml>>,
    samples: BTreeMap<String, GpmSample<'nvml>>,
    /// Devices and instances whose cards have no counters of their own.
    without_gpm: BTreeSet<String>,
}

/// Asks one device, until it turns out to be lost: then no more, since every further call may take long.
#[derive(Default)]
struct Asking {
    lost: Option<NvmlError>,
}

impl Asking {
    fn ask<T>(&mut self, question: impl FnOnce() -> Result<T, NvmlError>) -> Option<T> {
        if self.lost.is_some() {
            return None;
        }
        match question() {
            Ok(answer) => Some(answer),
            Err(error) if is_fatal(&error) => {
                self.lost = Some(error);
                None
            }
            // Not supported by this card, this driver or these permissions.
            Err(_) => None,
        }
    }
}

fn is_fatal(error: &NvmlError) -> bool {
    matches!(
        error,
        NvmlError::GpuLost
            | NvmlError::ResetRequired
            | NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::LibRmVersionMismatch
            | NvmlError::OperatingSystem
    )
}

/// CLOCK_MONOTONIC, ns: the clock that the rest of the controller goes by.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn percent(value: u32) -> f64 {
    f64::from(value) / 100.0
}

impl<'nvml> Sampler<'nvml> {
    pub fn new(nvml: &'nvml Nvml) -> Self {
        Self {
            nvml,
            last: BTreeMap::new(),
            events: BTreeMap::new(),
            samples: BTreeMap::new(),
            without_gpm: BTreeSet::new(),
        }
    }

    /// All devices and their MIG instances. A device that does not answer keeps its last figures, with the reason.
    ///
    /// # Errors
    /// When the driver itself answers no more.
    pub fn read(&mut self) -> Result<Vec<GpuReading>, NvmlError> {
        let mut readings = Vec::new();
        for index in 0..self.nvml.device_count()? {
            let mut asking = Asking::default();
            if let Some(device) = asking.ask(|| self.nvml.device_by_index(index)) {
                self.read_device(index, &device, &mut asking, &mut readings);
            }
            if let Some(error) = asking.lost {
                self.lost(index, &error, &mut readings);
            }
        }
        self.last = readings.iter().map(|reading| (reading.gpu.clone(), reading.clone())).collect();
        Ok(readings)
    }

    /// The last figures of a device that is lost, and of its MIG instances.
    fn lost(&mut self, index: u32, error: &NvmlError, readings: &mut Vec<GpuReading>) {
        let (device, instances) = (index.to_string(), format!("{index}:"));
        let is_its = |gpu: &str| gpu == device || gpu.starts_with(&instances);
        readings.retain(|reading| !is_its(&reading.gpu));
        let known = self.last.values().filter(|reading| is_its(&reading.gpu)).cloned();
        let known: Vec<GpuReading> = known.collect();
        if known.is_empty() {
            readings.push(GpuReading { gpu: device.clone(), ..GpuReading::default() });
        }
        readings.extend(known);
        for reading in readings.iter_mut().filter(|reading| is_its(&reading.gpu)) {
            reading.trouble = Some(error.to_string());
            reading.stale = true;
        }
        self.events.remove(&index);
        self.samples.retain(|gpu, _| !is_its(gpu));
    }

    fn read_device(&mut self, index: u32, device: &Device<'nvml>, asking: &mut Asking, readings: &mut Vec<GpuReading>) {
        let gpu = index.to_string();
        let mut reading = common(gpu.clone(), device, asking);
        reading.mig = asking.ask(|| device.mig_mode()).is_some_and(|mode| mode.current == 1);
        if !reading.mig
            && let Some(utilisation) = asking.ask(|| device.utilization_rates())
        {
            reading.busy_ratio = Some(percent(utilisation.gpu));
            reading.memory_busy_ratio = Some(percent(utilisation.memory));
        }
        health(device, asking, &mut reading);
        self.xids(index, device, asking, &mut reading);
        if !reading.mig {
            let sample = self.gpm_sample(&gpu, asking, || device.gpm_sample());
            self.gpm(&gpu, sample, asking, &mut reading);
        }
        if reading.pcie_sent_bytes_per_s.is_none() {
            let kib = |answer: u32| f64::from(answer) * 1024.0;
            reading.pcie_sent_bytes_per_s = asking.ask(|| device.pcie_throughput(PcieUtilCounter::Send)).map(kib);
            reading.pcie_received_bytes_per_s =
                asking.ask(|| device.pcie_throughput(PcieUtilCounter::Receive)).map(kib);
        }
        let mig = reading.mig;
        readings.push(reading);
        if mig {
            self.read_instances(&gpu, device, asking, readings);
        }
    }

    fn read_instances(
        &mut self,
        parent: &str,
        device: &Device<'nvml>,
        asking: &mut Asking,
        readings: &mut Vec<GpuReading>,
    ) {
        for slot in 0..asking.ask(|| device.mig_device_count()).unwrap_or(0) {
            // Slots without an instance are said not to be found.
            let Some(instance) = asking.ask(|| device.mig_device_by_index(slot)) else { continue };
            let Some(id) = asking.ask(|| gpu_instance_id(self.nvml, &instance)) else { continue };
            let gpu = format!("{parent}:{id}");
            let mut reading = common(gpu.clone(), &instance, asking);
            let sample = self.gpm_sample(&gpu, asking, || device.gpm_mig_sample(id));
            self.gpm(&gpu, sample, asking, &mut reading);
            readings.push(reading);
        }
    }

    fn gpm_sample(
        &mut self,
        gpu: &str,
        asking: &mut Asking,
        take: impl FnOnce() -> Result<GpmSample<'nvml>, NvmlError>,
    ) -> Option<GpmSample<'nvml>> {
        if self.without_gpm.contains(gpu) {
            return None;
        }
        let sample = asking.ask(take);
        if sample.is_none() && asking.lost.is_none() {
            self.without_gpm.insert(gpu.to_owned());
        }
        sample
    }

    /// The card's counters since the last reading; none at the first.
    fn gpm(&mut self, gpu: &str, sample: Option<GpmSample<'nvml>>, asking: &mut Asking, reading: &mut GpuReading) {
        let Some(sample) = sample else { return };
        if let Some(before) = self.samples.get(gpu)
            && let Some(metrics) = asking.ask(|| gpm_metrics_get(self.nvml, before, &sample, &GPM_METRICS))
        {
            let value = |id: GpmMetricId| {
                let found = metrics.iter().flatten().find(|metric| metric.metric_id == id);
                found.map(|metric| metric.value).filter(|value| value.is_finite())
            };
            let share = |id| value(id).map(|percent| percent / 100.0);
            reading.gpm = Some(GpmReading {
                busy_ratio: share(GpmMetricId::GraphicsUtil),
                sm_ratio: share(GpmMetricId::SmUtil),
                occupancy_ratio: share(GpmMetricId::SmOccupancy),
                tensor_ratio: share(GpmMetricId::AnyTensorUtil),
                memory_bandwidth_ratio: share(GpmMetricId::DramBwUtil),
            });
            reading.pcie_sent_bytes_per_s = value(GpmMetricId::PcieTxPerSec).map(|mib| mib * BYTES_PER_MIB);
            reading.pcie_received_bytes_per_s = value(GpmMetricId::PcieRxPerSec).map(|mib| mib * BYTES_PER_MIB);
        }
        self.samples.insert(gpu.to_owned(), sample);
    }

    /// Critical errors since the last reading, added to what was known.
    fn xids(&mut self, index: u32, device: &Device<'nvml>, asking: &mut Asking, reading: &mut GpuReading) {
        if let Some(last) = self.last.get(&reading.gpu) {
            (reading.xid_errors_total, reading.xid_last) = (last.xid_errors_total, last.xid_last);
        }
        if !self.events.contains_key(&index) {
            let Some(set) = asking.ask(|| self.nvml.create_event_set()) else { return };
            let Ok(set) = device.register_events(EventTypes::CRITICAL_XID_ERROR, set) else { return };
            self.events.insert(index, set);
        }
        let Some(set) = self.events.get(&index) else { return };
        for _ in 0..XIDS_AT_ONCE {
            // Without an event this answers at once that it timed out.
            let Some(event) = asking.ask(|| set.wait(0)) else { break };
            if let Some(xid) = event.event_data {
                reading.xid_errors_total += 1;
                reading.xid_last = match xid {
                    XidError::Value(number) => Some(number),
                    XidError::Unknown => None,
                };
            }
        }
    }
}

/// What a device and a MIG instance both tell.
fn common(gpu: String, device: &Device<'_>, asking: &mut Asking) -> GpuReading {
    let memory = asking.ask(|| device.memory_info());
    let processes = asking.ask(|| device.running_compute_processes()).unwrap_or_default();
    let processes = processes.into_iter().map(|process| GpuProcess {
        pid: process.pid,
        memory_bytes: match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
        instance: None,
        model: None,
    });
    GpuReading {
        gpu,
        uuid: asking.ask(|| device.uuid()).unwrap_or_default(),
        name: asking.ask(|| device.name()).unwrap_or_default(),
        observed_at_ns: now_ns(),
        memory_used_bytes: memory.as_ref().map(|memory| memory.used),
        memory_bytes: memory.as_ref().map(|memory| memory.total),
        processes: processes.collect(),
        ..GpuReading::default()
    }
}

/// Power, heat, clocks and memory errors: of whole devices only.
fn health(device: &Device<'_>, asking: &mut Asking, reading: &mut GpuReading) {
    let hertz = |mhz: u32| f64::from(mhz) * 1e6;
    reading.power_watts = asking.ask(|| device.power_usage()).map(|milliwatts| f64::from(milliwatts) / 1e3);
    reading.temperature_celsius = asking.ask(|| device.temperature(TemperatureSensor::Gpu)).map(f64::from);
    reading.sm_clock_hertz = asking.ask(|| device.clock_info(Clock::SM)).map(hertz);
    reading.memory_clock_hertz = asking.ask(|| device.clock_info(Clock::Memory)).map(hertz);
    let reasons = asking.ask(|| device.current_throttle_reasons()).unwrap_or(ThrottleReasons::NONE);
    reading.throttled_by =
        REASONS.iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, label)| *label).collect();
    let mut errors = |kind| asking.ask(|| device.total_ecc_errors(kind, EccCounter::Volatile));
    reading.ecc_corrected_total = errors(MemoryError::Corrected);
    reading.ecc_uncorrected_total = errors(MemoryError::Uncorrected);
}

/// Which GPU instance a MIG device is; the wrapper has no call for it.
fn gpu_instance_id(nvml: &Nvml, device: &Device<'_>) -> Result<u32, NvmlError> {
    let Ok(call) = nvml.lib().nvmlDeviceGetGpuInstanceId.as_ref() else { return Err(NvmlError::FunctionNotFound) };
    let mut id = 0;
    // SAFETY: the handle comes from this library and is in use no longer than `device`; the call writes one
    // unsigned int, and writes it before it answers 0.
    match unsafe { call(device.handle(), &raw mut id) } {
        0 => Ok(id),
        // NVML_ERROR_GPU_IS_LOST.
        15 => Err(NvmlError::GpuLost),
        _ => Err(NvmlError::NotSupported),
    }
}
