//! What the black-box tests share: a running `foreshock serve` with a state folder of its own, free
//! ports, and clients over plain sockets. The tests know the product only by its command line, its
//! ports and its files, so nothing here depends on the other crates.

pub mod http;
pub mod serve;
pub mod stream;

pub use serve::{Foreshock, demo_model, foreshock_binary, free_port, minilm, workspace_root};
