//! The routes and the server over real sockets, spoken to in raw HTTP. Only the model behind them is scripted:
//! the tests are about the seam, so what comes through it must be exactly known.

mod checkpoint;
mod choices;
mod embeddings;
mod errors;
mod server;
mod stream;
mod structured;
mod support;
mod tools;
mod whole;
