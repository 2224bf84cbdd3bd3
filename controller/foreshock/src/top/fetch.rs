//! Asks the admin port.

use super::board::{Answers, Board};
use super::series::{self, Series};
use crate::http::{self, Limits};
use serde_json::Value;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use telemetry::{ACTUAL_REQUESTS_PER_SECOND, ITL_SECONDS, TTFT_SECONDS};

/// A serve that takes longer hangs, and one that says more is none.
const LIMITS: Limits = Limits { patience: Duration::from_secs(2), answer_bytes: 32 << 20 };
/// Latencies are of the last so many seconds.
const WINDOW: Duration = Duration::from_secs(30);
/// Decisions asked for.
const DECISIONS: usize = 30;

/// Looks at one serve again and again.
pub struct Watcher {
    admin: SocketAddr,
    /// Metrics pages of the window, oldest first.
    pages: VecDeque<(Instant, Vec<Series>)>,
}

impl Watcher {
    pub fn new(admin: SocketAddr) -> Self {
        Self { admin, pages: VecDeque::new() }
    }

    /// What there is to show now.
    pub fn look(&mut self) -> Board {
        self.try_look().unwrap_or_else(|error| {
            self.pages.clear();
            let admin = self.admin;
            let trouble = format!(
                "no foreshock serve answers on the admin port {admin} ({error}); start one, or name its port with --admin"
            );
            Board::without(admin.to_string(), trouble)
        })
    }

    fn try_look(&mut self) -> io::Result<Board> {
        let json = |path: &str| Ok::<Value, io::Error>(serde_json::from_str(&self.get(path)?).unwrap_or_default());
        let wanted = [TTFT_SECONDS.name, ITL_SECONDS.name, ACTUAL_REQUESTS_PER_SECOND.name];
        let series = series::parse(&self.get("/metrics")?, &wanted);
        let snapshot = json("/v1/foreshock/snapshot")?;
        let decisions = json(&format!("/v1/foreshock/decisions?limit={DECISIONS}"))?;
        let gpus = json("/v1/foreshock/gpus")?;
        let now = Instant::now();
        while self.pages.get(1).is_some_and(|(at, _)| now.duration_since(*at) >= WINDOW) {
            self.pages.pop_front();
        }
        // Until there is something to compare with, all since serve's start is shown.
        let (window, earlier) = match self.pages.front() {
            Some((at, page)) => (format!("last {:.0} s", now.duration_since(*at).as_secs_f64()), page.clone()),
            None => ("since start".to_owned(), Vec::new()),
        };
        self.pages.push_back((now, series.clone()));
        Ok(Board::new(self.admin.to_string(), window, &Answers { snapshot, decisions, gpus, series, earlier }))
    }

    /// The body of an answer; an error's body is no more than that nothing is known.
    fn get(&self, path: &str) -> io::Result<String> {
        let (status, body) = http::get(self.admin, &self.admin.to_string(), path, LIMITS)?;
        match status {
            200 => Ok(body),
            // Before its first tick, serve has no snapshot.
            503 => Ok("null".to_owned()),
            status => Err(io::Error::other(format!("{path} answers {status}"))),
        }
    }
}
