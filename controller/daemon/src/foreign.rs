//! Engines that are not ours, behind the same seams: a checkpoint is registered with the engine that serves it, and the
//! controller starts, watches, measures and stops that program as it does its own. All that is asked of one is an
//! OpenAI-compatible HTTP server on a port that it is told, and a path that answers 200 once it can serve.

mod template;

pub(crate) use template::Values;

use crate::adapters::check_adapters;
use crate::catalog::{CatalogError, validate_name};
use crate::clock::unix_s;
use crate::registry::{Added, ModelRecord, Registry};
use engine_store::{Checkpoint, Summary};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::str::FromStr;
use thiserror::Error;

/// Which engine serves a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EngineKind {
    /// llama.cpp's server.
    LlamaServer,
    Vllm,
    /// TensorRT-LLM's server.
    TrtllmServe,
    /// Whatever the command line says.
    Custom,
}

impl EngineKind {
    const ALL: [Self; 4] = [Self::LlamaServer, Self::Vllm, Self::TrtllmServe, Self::Custom];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::LlamaServer => "llama-server",
            Self::Vllm => "vllm",
            Self::TrtllmServe => "trtllm-serve",
            Self::Custom => "custom",
        }
    }

    /// The command line that is used where none is given; a custom engine has none.
    fn command(self) -> Option<&'static str> {
        match self {
            // llama.cpp shares the context out among its slots.
            Self::LlamaServer => Some(
                "llama-server --host 127.0.0.1 --port {port} --model {path} --alias {name} --ctx-size {context_all} \
                 --parallel {slots} --threads {threads}",
            ),
            Self::Vllm => Some(
                "vllm serve {path} --host 127.0.0.1 --port {port} --served-model-name {name} --max-model-len {context} \
                 --max-num-seqs {slots}",
            ),
            Self::TrtllmServe => Some(
                "trtllm-serve {path} --host 127.0.0.1 --port {port} --max_seq_len {context} --max_batch_size {slots}",
            ),
            Self::Custom => None,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

impl FromStr for EngineKind {
    type Err = EngineError;

    fn from_str(name: &str) -> Result<Self, EngineError> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| EngineError::Unknown { name: name.to_owned() })
    }
}

/// What is wrong with an engine's description.
#[derive(Clone, Debug, Error, PartialEq)]
pub enum EngineError {
    #[error(
        "`{name}` is no engine that is known; choose llama-server, vllm, trtllm-serve, or custom with --engine-command"
    )]
    Unknown { name: String },
    #[error("a custom engine needs its command line: --engine-command 'PROGRAM --port {{port}} --model {{path}} ...'")]
    NoCommand,
    #[error("the engine's command line is empty")]
    EmptyCommand,
    #[error("the engine's command line has a quote that is not closed: {command}")]
    OpenQuote { command: String },
    #[error("the engine's command line has no {{port}}: each instance is given a port of its own to listen on")]
    NoPort,
    #[error("the engine's command line has {{{name}}}, which stands for nothing; there are {}", template::NAMES.map(|name| format!("{{{name}}}")).join(" "))]
    Placeholder { name: String },
    #[error("the health path `{path}` must begin with a slash and have no blank in it")]
    Health { path: String },
    #[error("{what} must be at least 1")]
    Zero { what: &'static str },
}

/// An engine as it is asked for; what is left out gets its default.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineAsk {
    pub kind: EngineKind,
    /// Command line in place of the engine's usual one, with placeholders.
    #[serde(default)]
    pub command: Option<String>,
    /// Path that answers 200 once the engine can serve.
    #[serde(default)]
    pub health: Option<String>,
    /// Longest sequence, tokens.
    #[serde(default)]
    pub context_tokens: Option<u32>,
    /// Requests that it computes at a time.
    #[serde(default)]
    pub slots: Option<u32>,
    /// Memory of one instance.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
}

/// How an engine is started and asked whether it is ready, as the registry keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineSpec {
    pub kind: EngineKind,
    /// None for the engine's usual command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    pub health: String,
    pub slots: u32,
}

const HEALTH: &str = "/health";
const SLOTS: u32 = 4;
/// Longest sequence where nobody says otherwise, tokens: models are trained for more than most machines have room for.
const CONTEXT_TOKENS: u32 = 4_096;
/// KV cache of an engine whose model is not understood here, bytes.
const KV_BYTES: u64 = 512 << 20;
/// Memory of an engine beside weights and KV cache, bytes.
const SCRATCH_BYTES: u64 = 256 << 20;

impl EngineSpec {
    /// Checks what was asked for.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn new(ask: &EngineAsk) -> Result<Self, EngineError> {
        if ask.kind == EngineKind::Custom && ask.command.is_none() {
            return Err(EngineError::NoCommand);
        }
        let slots = ask.slots.unwrap_or(SLOTS);
        if slots == 0 {
            return Err(EngineError::Zero { what: "the number of slots" });
        }
        if ask.context_tokens == Some(0) {
            return Err(EngineError::Zero { what: "the context" });
        }
        let health = ask.health.clone().unwrap_or_else(|| HEALTH.to_owned());
        if !health.starts_with('/') || health.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(EngineError::Health { path: health });
        }
        let spec = Self { kind: ask.kind, command: ask.command.clone(), health, slots };
        template::check(spec.template())?;
        Ok(spec)
    }

    fn template(&self) -> &str {
        self.command.as_deref().or(self.kind.command()).unwrap_or_default()
    }

    /// Program and arguments of one instance.
    ///
    /// # Errors
    /// As [`EngineSpec::new`].
    pub(crate) fn words(&self, values: &Values<'_>) -> Result<Vec<String>, EngineError> {
        template::fill(self.template(), values)
    }

    /// The program that is started.
    pub fn program(&self) -> String {
        template::split(self.template()).ok().and_then(|words| words.into_iter().next()).unwrap_or_default()
    }

    /// What of it is part of the revision: another engine, or the same one started otherwise, is another revision,
    /// so that instances are replaced.
    fn revision(&self, context_tokens: u32) -> String {
        let text = format!("{}\n{}\n{}\n{context_tokens}", self.template(), self.health, self.slots);
        // FNV-1a: a name, not a proof.
        let hash = text
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        format!("{}-{:08x}", self.kind, hash >> 32)
    }
}

/// Examines a checkpoint for another engine than ours. What it can serve is its own affair, so nothing but the files
/// themselves is asked for; what can be read of them fills the record in.
///
/// # Errors
/// When there are no such files, or the engine's description is wrong.
pub fn examine_foreign(name: &str, path: &Path, ask: &EngineAsk) -> Result<ModelRecord, CatalogError> {
    validate_name(name)?;
    let spec = EngineSpec::new(ask)?;
    let describe = |source| CatalogError::File { path: path.to_path_buf(), source };
    let path = path.canonicalize().map_err(describe)?;
    if path.to_str().is_none() {
        return Err(CatalogError::Path { path });
    }
    let stamp = engine_store::stamp(&path).map_err(describe)?;
    let digest = engine_store::revision(&path, None)
        .map_err(|source| CatalogError::Checkpoint { path: path.clone(), source })?;
    let checkpoint = Checkpoint::open(&path, None).ok();
    let summary = checkpoint.as_ref().and_then(|checkpoint| checkpoint.inspect().ok());
    let stated = summary.as_ref().and_then(|summary| u32::try_from(summary.context_tokens?).ok());
    let usual = stated.unwrap_or(CONTEXT_TOKENS).clamp(1, CONTEXT_TOKENS);
    let context_tokens = ask.context_tokens.unwrap_or(usual);
    let kv_bytes = checkpoint.as_ref().and_then(|checkpoint| {
        let config = checkpoint.validate().ok()?;
        // A key and a value of two bytes each.
        let token_bytes = config.layers * config.kv_heads * config.head_dim * 4;
        Some(token_bytes as u64 * u64::from(context_tokens) * u64::from(spec.slots))
    });
    let needed = stamp.bytes + kv_bytes.unwrap_or(KV_BYTES) + SCRATCH_BYTES;
    let architecture = |summary: &Summary| summary.architecture.clone();
    Ok(ModelRecord {
        name: name.to_owned(),
        revision: format!("{digest}+{}", spec.revision(context_tokens)),
        created_unix_s: unix_s(),
        file_bytes: stamp.bytes,
        modified_unix_ns: stamp.modified_unix_ns,
        architecture: summary.as_ref().map_or_else(|| "unknown".to_owned(), architecture),
        parameters: summary.as_ref().map_or(0, |summary| summary.parameters),
        context_tokens,
        instance_bytes: ask.memory_bytes.unwrap_or(needed),
        quantise: None,
        head: None,
        adapters: Vec::new(),
        engine: Some(spec),
        path,
    })
}

/// Examines a checkpoint and registers it with its engine: `foreshock models add --engine`.
///
/// # Errors
/// As [`examine_foreign`], when the name has adapters, and when the database cannot be written.
pub fn add_foreign(
    registry: &mut Registry,
    name: &str,
    path: &Path,
    ask: &EngineAsk,
) -> Result<(Added, ModelRecord), CatalogError> {
    let record = examine_foreign(name, path, ask)?;
    check_adapters(registry, &record)?;
    let added = registry.put_model(&record)?;
    Ok((added, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(kind: EngineKind) -> EngineAsk {
        EngineAsk { kind, command: None, health: None, context_tokens: None, slots: None, memory_bytes: None }
    }

    #[test]
    fn what_is_wrong_with_a_description_is_named() {
        let custom = |command: &str| EngineAsk { command: Some(command.to_owned()), ..ask(EngineKind::Custom) };
        let check = |ask: &EngineAsk, expected: &str| {
            let message = EngineSpec::new(ask).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(&ask(EngineKind::Custom), "--engine-command 'PROGRAM --port {port} --model {path} ...'");
        check(&custom(""), "is empty");
        check(&custom("prog --model {path}"), "no {port}");
        check(&custom("prog {port} {pth}"), "{pth}, which stands for nothing; there are {path} {port}");
        check(&custom("prog {port} 'x"), "not closed");
        check(&EngineAsk { health: Some("health".to_owned()), ..ask(EngineKind::Vllm) }, "begin with a slash");
        check(&EngineAsk { slots: Some(0), ..ask(EngineKind::Vllm) }, "at least 1");
        assert!("ollama".parse::<EngineKind>().unwrap_err().to_string().contains("llama-server"));
    }

    #[test]
    fn a_file_that_nobody_here_understands_can_be_another_engines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        let missing = examine_foreign("x", &path, &ask(EngineKind::Vllm)).unwrap_err().to_string();
        assert!(missing.contains("x.bin") && missing.contains("No such file"), "{missing}");
        std::fs::write(&path, b"weights").unwrap();
        let record = |ask: &EngineAsk| examine_foreign("x", &path, ask).unwrap();
        let usual = record(&ask(EngineKind::Vllm));
        assert_eq!((usual.architecture.as_str(), usual.context_tokens), ("unknown", 4_096));
        assert_eq!(usual.instance_bytes, 7 + KV_BYTES + SCRATCH_BYTES);
        assert_eq!(usual.revision, record(&ask(EngineKind::Vllm)).revision);
        let others = [
            ask(EngineKind::LlamaServer),
            EngineAsk { slots: Some(8), ..ask(EngineKind::Vllm) },
            EngineAsk { context_tokens: Some(8), ..ask(EngineKind::Vllm) },
            EngineAsk { command: Some("vllm serve {path} --port {port}".to_owned()), ..ask(EngineKind::Vllm) },
        ];
        for other in others {
            assert_ne!(usual.revision, record(&other).revision, "{other:?}");
        }
    }
}
