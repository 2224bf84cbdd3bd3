//! The daemon against real files, sockets and processes.

mod admin;
mod adoption;
mod daemon;
mod outside;
mod process;
mod registry;
mod stage;
#[path = "../../../../engine/store/tests/common/tiny_folder.rs"]
mod tiny_folder;
