//! What an engine process is told at its start, checked once before any port is bound.

use crate::clock;
use crate::error::EngineError;
use crate::heads::Head;
use engine_core::Speculation;
use engine_store::Quantisation;
use engine_wire::control::{AdapterSpec, HeadSpec};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

/// KV cache when nothing is said, bytes; less where memory is short.
const DEFAULT_KV_BYTES: u64 = 256 << 20;
/// Share of the available memory that the default KV cache may take.
const DEFAULT_KV_SHARE: u64 = 4;

/// Arithmetic of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// Weights dequantised, all in f32: the reference.
    F32,
    /// Integer dot products on quantised activations.
    Fast,
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvType {
    F16,
    /// int8 with a scale per 64 numbers: nearly half of f16's memory, and some more rounding.
    Q8,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    #[default]
    Cpu,
    /// The GPU of this number, as CUDA counts them.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    /// `cpu`, `cuda` or `cuda:N`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "0")) {
            ("cpu", _) if text == "cpu" => Ok(Self::Cpu),
            ("cuda", ordinal) if ordinal.bytes().all(|byte| byte.is_ascii_digit()) => {
                ordinal.parse().map(Self::Cuda).map_err(|_| format!("no GPU has the number {ordinal:?}"))
            }
            _ => Err("expected cpu, cuda or cuda:N".to_owned()),
        }
    }
}

/// One engine process.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Checkpoint: a GGUF file, or a Hugging Face folder of a decoder or an encoder.
    pub model: PathBuf,
    /// What a folder's matrices are rounded to at load; none leaves them as they are stored.
    pub quantise: Option<Quantisation>,
    pub host: IpAddr,
    /// 0 takes a free port.
    pub port: u16,
    /// Name that requests must give; none for the file's name without its ending, or the folder's.
    pub name: Option<String>,
    pub device: Device,
    pub compute: Compute,
    /// Cores to run on, one compute thread each; empty for all that the process may use.
    pub cores: Vec<u32>,
    /// None for what goes with `compute`: f32 or f16.
    pub kv_type: Option<KvType>,
    /// KV cache, bytes; none for a default by available memory.
    pub kv_bytes: Option<u64>,
    /// Requests that may wait inside before more are refused.
    pub max_queue: usize,
    /// Time between two tokens that prefill of others should leave to a stream.
    pub itl_target: Duration,
    /// When tokens are drafted from what a sequence has said before. It changes no output.
    pub speculation: Speculation,
    /// Time that streams get to finish after SIGTERM or SIGINT.
    pub drain_timeout: Duration,
    /// Adapters to serve beside the model.
    pub adapters: Vec<AdapterSpec>,
    /// Where the weights are, when `model` is a head of the store and holds none itself.
    pub store: Option<StoreOptions>,
    /// What `model` says, where it was read before.
    pub head: Option<Arc<Head>>,
    /// Set when a controller started this engine.
    pub supervision: Option<Supervision>,
}

/// Weights in the store.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The store's folder.
    pub root: PathBuf,
    /// Where segments of memory lie that engines share.
    pub segments: PathBuf,
    /// Of the model in the store.
    pub revision: String,
}

impl StoreOptions {
    /// As heads are read ahead by.
    pub(crate) fn spec(&self) -> HeadSpec {
        HeadSpec { store: self.root.clone(), revision: self.revision.clone() }
    }
}

/// The controller's hold on an engine.
#[derive(Clone, Debug)]
pub struct Supervision {
    pub instance: String,
    /// Revision of the model, as the controller knows it.
    pub revision: String,
    /// Path of the control socket, made by the engine.
    pub control: PathBuf,
    /// With no `Renew` for this long, the engine finishes its streams and exits.
    pub lease: Duration,
}

impl EngineOptions {
    /// An engine by itself, with everything else at its default.
    pub fn new(model: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            quantise: None,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            name: None,
            device: Device::Cpu,
            compute: Compute::Fast,
            cores: Vec::new(),
            kv_type: None,
            kv_bytes: None,
            max_queue: 256,
            itl_target: Duration::from_millis(100),
            speculation: Speculation::WhenItPays,
            drain_timeout: Duration::from_secs(10),
            adapters: Vec::new(),
            store: None,
            head: None,
            supervision: None,
        }
    }

    /// The name under which the model is served.
    pub fn served_name(&self) -> String {
        // A folder has no ending: what follows a dot in it is a version.
        let stem = if self.model.is_dir() { self.model.file_name() } else { self.model.file_stem() };
        let stem = || stem.unwrap_or(self.model.as_os_str()).to_string_lossy().into_owned();
        self.name.clone().unwrap_or_else(stem)
    }

    /// Refuses what cannot work, before anything is bound or loaded.
    pub(crate) fn check(&self) -> Result<(), EngineError> {
        let bad = |message: String| Err(EngineError::BadOption { message });
        if self.served_name().is_empty() {
            return bad("--name is empty".into());
        }
        if self.max_queue == 0 {
            return bad("--max-queue is 0: at least one request must be able to wait".into());
        }
        if self.itl_target.is_zero() {
            return bad("--itl-target-ms is 0: no step takes no time".into());
        }
        if let Some(supervision) = &self.supervision
            && supervision.lease.is_zero()
        {
            return bad("--lease-ms is 0: the engine would exit at once".into());
        }
        if let (Some(kv_bytes), Some(available_bytes)) = (self.kv_bytes, clock::available_bytes())
            && kv_bytes > available_bytes
        {
            return bad(format!(
                "--kv-bytes {kv_bytes} is more than the {available_bytes} bytes of memory that are available"
            ));
        }
        if let (Device::Cuda(_), Some(adapter)) = (self.device, self.adapters.first()) {
            return bad(format!("--adapter {}: adapters are served on the CPU alone", adapter.name));
        }
        check_path(&self.model)
    }

    /// Size of the KV cache to ask for, bytes.
    pub(crate) fn kv_bytes_or_default(&self) -> u64 {
        self.kv_bytes.unwrap_or_else(|| {
            clock::available_bytes().map_or(DEFAULT_KV_BYTES, |bytes| DEFAULT_KV_BYTES.min(bytes / DEFAULT_KV_SHARE))
        })
    }
}

fn check_path(path: &Path) -> Result<(), EngineError> {
    let message = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() || metadata.is_dir() => return Ok(()),
        Ok(_) => "neither a file nor a folder".to_string(),
        Err(error) => error.to_string(),
    };
    Err(EngineError::Model { path: path.to_path_buf(), message })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut EngineOptions), expected: Option<&str>) {
        let file = tempfile::NamedTempFile::with_suffix(".gguf").expect("a file");
        let mut options = EngineOptions::new(file.path());
        change(&mut options);
        let message = options.check().err().map(|error| error.to_string());
        match (expected, message) {
            (None, None) => {}
            (Some(expected), Some(message)) => assert!(message.contains(expected), "{message}"),
            (expected, message) => panic!("expected {expected:?}, got {message:?}"),
        }
    }

    #[test]
    fn options_are_checked() {
        check(|_| {}, None);
        check(
            |o| o.model = "/no/such/file.gguf".into(),
            Some("cannot load the model /no/such/file.gguf: No such file"),
        );
        check(|o| o.model = "/dev/null".into(), Some("neither a file nor a folder"));
        check(|o| o.max_queue = 0, Some("--max-queue"));
        check(|o| o.itl_target = Duration::ZERO, Some("--itl-target-ms"));
        check(|o| o.kv_bytes = Some(u64::MAX), Some("--kv-bytes"));
        check(|o| o.name = Some(String::new()), Some("--name"));
    }

    #[test]
    fn the_file_names_the_model_unless_told() {
        let mut options = EngineOptions::new("/models/smol.q4.gguf");
        assert_eq!(options.served_name(), "smol.q4");
        options.name = Some("chat".into());
        assert_eq!(options.served_name(), "chat");
    }
}
