//! Why an engine process could not start or go on, and the exit code that tells its parent.

use std::net::SocketAddr;
use std::path::PathBuf;
use thiserror::Error;

/// An engine that ends. `Display` is the one line for stderr.
#[derive(Debug, Error)]
pub enum EngineError {
    #[error("{message}")]
    BadOption { message: String },
    #[error("cannot load the model {path}: {message}")]
    Model { path: PathBuf, message: String },
    #[error("cannot load the adapter {name}: {message}")]
    Adapter { name: String, message: String },
    #[error("{addr} is in use: stop what listens there or choose another --port")]
    PortInUse { addr: SocketAddr },
    #[error("cannot listen on {addr}: {source}")]
    Listen { addr: SocketAddr, source: std::io::Error },
    #[error("cannot listen on the control socket {path}: {message}")]
    Control { path: PathBuf, message: String },
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
    #[error("the step thread ended: {message}")]
    StepThread { message: String },
}

impl EngineError {
    /// Exit code of the process: 2 for bad options or input files, 3 for a port in use, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::BadOption { .. } | Self::Model { .. } | Self::Adapter { .. } => 2,
            Self::PortInUse { .. } => 3,
            Self::Listen { .. } | Self::Control { .. } | Self::Signals(_) | Self::StepThread { .. } => 1,
        }
    }
}
