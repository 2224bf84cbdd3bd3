//! What llama-server itself says of its batch and queue: its slots, and the requests that it put off.

use crate::http;
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(100);

/// One look.
pub struct Moment {
    /// In the middle between question and answer.
    pub at: Instant,
    pub batch: f64,
    pub queue: f64,
}

/// A thread that asks.
pub struct Truth {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Vec<Moment>>>,
}

impl Truth {
    pub fn start(addr: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut moments = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                moments.push(look(addr)?);
                std::thread::sleep(EVERY);
            }
            Ok(moments)
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Result<Vec<Moment>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().ok().context("the thread that asks panicked")?
    }
}

/// The server answers both between two steps, so they are of nearly the same moment.
fn look(addr: SocketAddr) -> Result<Moment> {
    let asked = Instant::now();
    let slots = http::call(addr, "GET", "/slots", b"")?.json()?;
    let at = asked + asked.elapsed() / 2;
    let metrics = http::call(addr, "GET", "/metrics", b"")?;
    let text = String::from_utf8_lossy(&metrics.body);
    let deferred = text.lines().find_map(|line| line.strip_prefix("llamacpp:requests_deferred ")?.parse().ok());
    let busy = slots.as_array().context("no slots")?.iter().filter(|slot| slot["is_processing"] == true).count();
    Ok(Moment { at, batch: busy as f64, queue: deferred.context("no count of deferred requests")? })
}
