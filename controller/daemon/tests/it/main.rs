//! The daemon against real files, sockets and processes.

mod admin;
mod adoption;
mod daemon;
mod process;
mod registry;
mod stage;
