//! The CPU device on the real checkpoint: reference tokens, the fast path's error, and bitwise invariance.

mod adapters;
mod fast;
#[path = "../common/folder.rs"]
mod folder;
mod folders;
mod golden;
mod invariance;
mod stored;
mod support;
#[path = "../../../text/tests/common/tokenizer_json.rs"]
mod tokenizer_json;
