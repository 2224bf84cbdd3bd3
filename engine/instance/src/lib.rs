//! One engine process: a model behind the OpenAI API and the gateway's hop, with its control socket.
//!
//! One plain thread steps the model (`step_loop`, or `encode_loop` for an encoder); everything else is async and never waits for it, nor it
//! for them. The engine binds its port before it loads, so that requests can wait inside, and it outlives
//! the controller that started it, on a lease (`life`).

mod backend;
mod clock;
mod control;
mod cores;
mod delivery;
mod embed;
mod encode_loop;
mod ends;
mod error;
mod exposition;
mod guides;
mod heads;
mod hop;
mod ledger;
mod life;
mod limits;
mod load;
mod notice;
mod options;
mod request;
mod run;
mod server;
mod shared;
mod shelf;
mod spare;
mod step_loop;
mod text;
mod timings;

pub use backend::LocalBackend;
pub use ends::end_tokens;
pub use engine_core::Speculation;
pub use engine_runtime::CpuBands;
pub use engine_wire::control::AdapterSpec;
pub use error::EngineError;
pub use heads::Head;
pub use load::{Came, Loaded, LoadedEncoder, LoadedModel, Loader};
pub use options::{Compute, Device, EngineOptions, KvType, StoreOptions, Supervision};
pub use run::{run, run_with};
pub use shelf::AdapterHost;
pub use spare::{ParseArgs, SpareOptions, run_spare, run_spare_with};
