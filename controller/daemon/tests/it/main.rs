//! The daemon against real files, sockets and processes.

mod adoption;
mod daemon;
mod process;
mod registry;
mod stage;
