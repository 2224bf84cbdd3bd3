//! The front door: identifies a request, holds it while its model is at zero, routes it to the least
//! loaded instance, resumes it elsewhere when that one dies, and meters what was served.
//!
//! [`Gateway`] implements `engine_http::Backend`; HTTP itself (routes, SSE, limits) is engine-http's. The
//! controller publishes a [`RouteTable`] and reads [`Gateway::demand`]; nothing else passes between the two.

mod connection;
mod conversations;
mod demand;
mod endpoint;
mod forward;
mod gateway;
mod hop;
mod meters;
mod model;
mod options;
mod outlet;
mod records;
mod refused;
mod request;
pub mod routes;
pub mod sse;
mod text;
mod work;

pub use conversations::Turn;
pub use demand::ModelDemand;
pub use gateway::Gateway;
pub use options::GatewayOptions;
pub use records::{AccessEntry, Outcome, RequestRecord};
pub use routes::{BaseRoute, Endpoint, ModelRoute, RouteTable};
pub use text::TextLoader;
pub use work::EndpointLoad;
