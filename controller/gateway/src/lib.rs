//! The front door: identifies a request, holds it while its model is at zero, routes it to the least
//! loaded instance, resumes it elsewhere when that one dies, and meters what was served.

pub mod routes;
pub use routes::{Endpoint, ModelRoute, RouteTable};
