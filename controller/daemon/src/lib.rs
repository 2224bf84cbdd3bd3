//! The impure half of the controller: it observes, calls the pure `tick`, and acts.
//!
//! [`Daemon`] is the one loop. Around it: the state database ([`registry`]), what is observed
//! ([`observe`]), what starts and stops engines ([`actuate`]), and what others may see ([`admin`]).
//! No decision is taken here, so the simulator's results hold for the live system.

pub mod actuate;
mod adapters;
pub mod admin;
pub mod catalog;
pub mod clock;
pub mod config;
mod daemon;
mod explain;
mod fits;
pub mod fleet;
pub mod foreign;
mod lock;
mod measure;
mod model_store;
pub mod observe;
pub mod registry;
mod run;
mod spares;
mod starts;
mod tiers;
mod timeline;
#[cfg(test)]
#[path = "../../../engine/store/tests/common/tiny_folder.rs"]
mod tiny_folder;
mod view;
mod weights;

pub use adapters::add_adapter;
pub use admin::Admin;
pub use catalog::{CatalogError, add_model, examine};
pub use config::{ComputeMode, ConfigError, DaemonConfig, KvType};
pub use daemon::{Daemon, DaemonError, NoPortWatch, PortWatch};
pub use explain::render_explain;
pub use lock::{LockError, ServeLock};
pub use model_store::{ModelStore, Taking};
pub use observe::outside::{OutsideView, OutsideWatch};
pub use observe::{GatewayReading, GatewaySignal, KernelReading, KernelSignal, ModelDemand, Signal};
pub use registry::{AdapterRecord, Added, ModelRecord, Registry, RegistryError};
pub use timeline::{StartRecord, render_starts};
pub use view::{TickSeen, View};
