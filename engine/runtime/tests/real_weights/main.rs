//! The CPU device on the real checkpoint: reference tokens, the fast path's error, and bitwise invariance.

mod adapters;
mod fast;
mod golden;
mod invariance;
mod support;
