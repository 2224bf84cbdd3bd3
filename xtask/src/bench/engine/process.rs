//! `foreshock engine` by itself, started for a measurement and killed after it.

use crate::bench::load;
use crate::layout;
use crate::server::free_port;
use crate::shell::command;
use anyhow::{Context, Result, ensure};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A start takes milliseconds; this is for a machine in trouble.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running engine; killed when dropped. It serves its model by the name [`NAME`].
pub struct Engine {
    child: Child,
    pub addr: SocketAddr,
}

/// Without drafts: what follows a random prompt repeats itself, and drafts of repetitions would flatter every figure.
pub const PLAIN: &[&str] = &["--speculation", "off"];

/// Name of the model.
pub const NAME: &str = "engine";

impl Engine {
    /// Starts it with these further options and waits for its first token.
    pub fn start(model: &Path, options: &[&str]) -> Result<Self> {
        Self::start_with(model, options, &[])
    }

    /// [`Engine::start`] with variables in its environment.
    pub fn start_with(model: &Path, options: &[&str], variables: &[(&str, &Path)]) -> Result<Self> {
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let child = command(layout::foreshock(), &["engine", "--name", NAME, "--port", &addr.port().to_string()])
            .arg("--model")
            .arg(model)
            .args(options)
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start foreshock engine")?;
        let engine = Self { child, addr };
        let begun = Instant::now();
        while load::ttft_ms(addr, NAME, 4).is_err() {
            ensure!(begun.elapsed() < PATIENCE, "foreshock engine gave no token within {} s", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(engine)
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Resident memory of a process, MiB.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.split_whitespace().next().context("no figure after VmRSS")?.parse()?;
    Ok(kib / 1024.0)
}
