//! `foreshock serve` as a child process: started in a state folder on free loopback ports, waited for,
//! and gone with all its engines when dropped.

use crate::http;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a start, and a stop, may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running `foreshock serve`.
pub struct Foreshock {
    child: Child,
    /// Data port: the OpenAI API.
    pub data: SocketAddr,
    /// Admin port.
    pub admin: SocketAddr,
    state: PathBuf,
    /// Removes the state folder in the end, where it is ours.
    _folder: Option<tempfile::TempDir>,
}

impl Foreshock {
    /// Starts with a fresh state folder and these further arguments, and waits until it is ready.
    pub fn start(args: &[&str]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut running = Self::start_in(folder.path(), args)?;
        running._folder = Some(folder);
        Ok(running)
    }

    /// Starts on a state folder that outlives it, for tests of restarts and adoption.
    pub fn start_in(state: &Path, args: &[&str]) -> Result<Self> {
        Self::start_with(state, args, &[])
    }

    /// [`Self::start_in`] with these environment variables, which engines inherit.
    pub fn start_with(state: &Path, args: &[&str], environment: &[(&str, &Path)]) -> Result<Self> {
        let data = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let log = File::options().create(true).append(true).open(state.join("serve.log"))?;
        let child = Command::new(foreshock_binary()?)
            .args(["serve", "--listen", &data.to_string(), "--admin", &admin.to_string(), "--state"])
            .arg(state)
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting foreshock serve")?;
        let mut running = Self { child, data, admin, state: state.to_owned(), _folder: None };
        running.wait_ready()?;
        Ok(running)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("foreshock serve ended with {status}:\n{}", self.log());
            }
            if http::get(self.data, "/readyz").is_ok_and(|answer| answer.status == 200) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not ready after {PATIENCE:?}:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Process id of `serve`.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// What `serve` has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state.join("serve.log")).unwrap_or_default()
    }

    /// Registers the demo checkpoint under `name`, by the command line.
    pub fn add_model(&self, name: &str) -> Result<()> {
        self.add_model_at(name, &demo_model()?)
    }

    /// Registers another checkpoint, by the command line.
    pub fn add_model_at(&self, name: &str, checkpoint: &Path) -> Result<()> {
        self.add_model_with(name, checkpoint, &[])
    }

    /// [`Self::add_model_at`] with these further arguments.
    pub fn add_model_with(&self, name: &str, checkpoint: &Path, args: &[&str]) -> Result<()> {
        let output = Command::new(foreshock_binary()?)
            .args(["models", "add", name])
            .arg(checkpoint)
            .args(args)
            .arg("--state")
            .arg(&self.state)
            .output()?;
        ensure!(output.status.success(), "models add: {}", String::from_utf8_lossy(&output.stderr));
        self.wait_listed(name)
    }

    /// The command line works on the registry's database; the running gateway learns of it soon after.
    fn wait_listed(&self, name: &str) -> Result<()> {
        self.wait_until(&format!("/v1/models lists {name}"), |running| {
            let models = http::get(running.data, "/v1/models")?.json()?;
            Ok(models["data"].as_array().is_some_and(|rows| rows.iter().any(|row| row["id"] == name)))
        })
    }

    /// Polls until `done` holds; fails after 30 s with what was awaited and the log.
    pub fn wait_until(&self, what: &str, done: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        self.wait_until_for(PATIENCE, what, done)
    }

    /// [`Self::wait_until`] with a patience of one's own.
    pub fn wait_until_for(&self, patience: Duration, what: &str, done: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !done(self)? {
            ensure!(Instant::now() < deadline, "waited {patience:?} for: {what}. Log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// JSON from the admin port, e.g. `instances` for `/v1/foreshock/instances`.
    pub fn admin_get(&self, what: &str) -> Result<Value> {
        let answer = http::get(self.admin, &format!("/v1/foreshock/{what}"))?;
        ensure!(answer.status == 200, "{what}: {} {}", answer.status, answer.text());
        answer.json()
    }

    /// The Prometheus exposition.
    pub fn metrics(&self) -> Result<String> {
        Ok(http::get(self.data, "/metrics")?.text())
    }

    /// Sum over all series of a metric whose labels hold every `part`, as `model="a"`.
    pub fn metric_sum(&self, name: &str, parts: &[&str]) -> Result<f64> {
        Ok(sum_series(&self.metrics()?, name, parts))
    }

    /// SIGTERM, then its exit status.
    pub fn terminate(mut self) -> Result<ExitStatus> {
        self.signal(rustix::process::Signal::TERM)?;
        wait_exit(&mut self.child, PATIENCE)?.context("still running 30 s after SIGTERM")
    }

    /// kill -9 of `serve` alone; its engines live on until adopted, out of lease, or the drop of `self`.
    pub fn kill_serve(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).context("signalling serve")
    }
}

impl Drop for Foreshock {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // First the polite way, so that engines are drained and probes detached.
            let _ = self.signal(rustix::process::Signal::TERM);
            if !matches!(wait_exit(&mut self.child, Duration::from_secs(15)), Ok(Some(_))) {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
        // A folder that outlives us may be under test for adoption: its engines are the next start's.
        if self._folder.is_some() {
            kill_engines(&self.state);
        }
        if std::thread::panicking() {
            eprintln!("--- log of foreshock serve ---\n{}", self.log());
        }
    }
}

/// Kills engines and spare processes of this state folder. Call it at the end of a test with a folder of its own.
pub fn kill_engines(state: &Path) {
    for pid in engine_pids(state).into_iter().chain(pids_of(&state.join("spares"))) {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Engine processes of a state folder: their command line holds their control socket, which stands in it; or they were
/// spare processes, and an instance file names them.
pub fn engine_pids(state: &Path) -> Vec<i32> {
    let mut pids = pids_of(&state.join("engines"));
    let spares = pids_of(&state.join("spares"));
    let files = std::fs::read_dir(state.join("engines")).into_iter().flatten().flatten();
    let file_pid = |path: PathBuf| -> Option<i32> {
        let file: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        i32::try_from(file["pid"].as_i64()?).ok()
    };
    pids.extend(files.filter_map(|file| file_pid(file.path())).filter(|pid| spares.contains(pid)));
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// Processes whose command line holds a path in this folder.
fn pids_of(folder: &Path) -> Vec<i32> {
    let Ok(processes) = std::fs::read_dir("/proc") else { return Vec::new() };
    let needle = folder.to_string_lossy().into_owned();
    processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&needle)
        })
        .collect()
}

fn wait_exit(child: &mut Child, patience: Duration) -> Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

/// Sum over the series of a metric in an exposition whose labels hold every `part`.
pub fn sum_series(exposition: &str, name: &str, parts: &[&str]) -> f64 {
    exposition
        .lines()
        .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
        .filter(|line| parts.iter().all(|part| line.contains(part)))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
        .sum()
}

/// A TCP port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

/// Root of the repository.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// The built binary.
pub fn foreshock_binary() -> Result<PathBuf> {
    found(workspace_root().join("target/release/foreshock"), "cargo build --release -p foreshock")
}

/// The demo checkpoint that `cargo xtask setup` fetches.
pub fn demo_model() -> Result<PathBuf> {
    found(workspace_root().join("target/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), "cargo xtask setup")
}

/// The embedding model that it fetches, a folder.
pub fn minilm() -> Result<PathBuf> {
    found(workspace_root().join("target/models/minilm"), "cargo xtask setup")
}

fn found(path: PathBuf, how: &str) -> Result<PathBuf> {
    ensure!(path.exists(), "{} is not there; run `{how}` (or `cargo xtask test`)", path.display());
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::sum_series;

    #[test]
    fn series_are_summed_by_name_and_labels() {
        let text = "# HELP a x\na{model=\"m\",k=\"1\"} 2\na{model=\"m\",k=\"2\"} 3\na{model=\"n\"} 5\na_total 7\nb 1\n";
        let check =
            |name, parts: &[&str], want: f64| assert_eq!(sum_series(text, name, parts), want, "{name} {parts:?}");
        check("a", &[], 10.0);
        check("a", &["model=\"m\""], 5.0);
        check("a", &["model=\"m\"", "k=\"2\""], 3.0);
        check("a_total", &[], 7.0);
        check("b", &[], 1.0);
        check("absent", &[], 0.0);
    }
}
