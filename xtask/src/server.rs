//! `foreshock serve` as a process: found by its state folder's lock, started detached, stopped.

use crate::layout;
use crate::shell::{command, make_folder, quiet};
use crate::{http, shell};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long a start, and a stop (which drains), may take.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Args, Clone)]
pub struct StateArgs {
    /// State folder [default: that of `foreshock serve`].
    #[arg(long)]
    pub state: Option<PathBuf>,
}

impl StateArgs {
    /// The folder, absolute.
    pub fn folder(&self) -> Result<PathBuf> {
        match &self.state {
            Some(path) => Ok(std::path::absolute(path)?),
            None => layout::default_state(),
        }
    }
}

#[derive(Args, Clone)]
pub struct DeployArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Data port on loopback: the OpenAI API.
    #[arg(long, default_value_t = 8080)]
    pub port: u16,
    /// Admin port on loopback.
    #[arg(long, default_value_t = 8081)]
    pub admin_port: u16,
}

/// Ports and state folder of a running serve.
#[derive(Clone, Debug, PartialEq)]
pub struct Serve {
    pub pid: u32,
    pub data: SocketAddr,
    pub admin: SocketAddr,
    pub state: PathBuf,
}

impl Serve {
    /// The serve that runs on a state folder, if one does.
    pub fn running(state: &Path) -> Option<Self> {
        let pid: u32 = std::fs::read_to_string(state.join("serve.lock")).ok()?.trim().parse().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words: Vec<String> =
            line.split(|byte| *byte == 0).map(|w| String::from_utf8_lossy(w).into_owned()).collect();
        // The pid may be another process's by now: it has to be a `foreshock serve`.
        if !words.first()?.ends_with("foreshock") || words.get(1)? != "serve" {
            return None;
        }
        Some(Self {
            pid,
            data: address_after(&words, "--listen", 8080),
            admin: address_after(&words, "--admin", 8081),
            state: state.to_owned(),
        })
    }

    /// Starts one in a session of its own, which goes on when this program ends.
    pub fn start_detached(state: &Path, port: u16, admin_port: u16) -> Result<Self> {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (data, admin) = (loopback(port), loopback(admin_port));
        let mut setsid = command("setsid", &[&layout::foreshock().to_string_lossy()]);
        let mut child = spawn_serve(&mut setsid, state, data, admin, &[])?;
        let serve = Self { pid: child.id(), data, admin, state: state.to_owned() };
        if let Err(error) = serve.wait_ready(&mut child) {
            // What never became ready is of no use to anyone, and would hold the ports.
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        Ok(serve)
    }

    fn wait_ready(&self, child: &mut Child) -> Result<()> {
        http::wait_ok(self.data, "/readyz", PATIENCE, &mut || match child.try_wait()? {
            Some(status) => bail!("foreshock serve ended with {status}; its log says:\n{}", tail(&self.log())),
            None => Ok(()),
        })
    }

    /// Where it logs.
    pub fn log(&self) -> PathBuf {
        log_path(&self.state)
    }

    /// Whether it runs another program than the one built here: an older build, or one that has been removed.
    pub fn is_outdated(&self) -> bool {
        // The kernel marks a program whose file was replaced as deleted, so a rebuild shows as another path.
        std::fs::read_link(format!("/proc/{}/exe", self.pid)).is_ok_and(|exe| {
            let built = layout::foreshock();
            exe != built.canonicalize().unwrap_or(built)
        })
    }

    /// Registers a checkpoint, also when the name is there, since it may stand for a file that is gone; then waits
    /// until the gateway lists it.
    pub fn add_model(&self, name: &str, path: &Path) -> Result<()> {
        let (path, state) = (path.to_string_lossy(), self.state.to_string_lossy());
        quiet(&mut command(layout::foreshock(), &["models", "add", name, &path, "--state", &state]))?;
        let begun = Instant::now();
        while !self.lists(name) {
            ensure!(begun.elapsed() < PATIENCE, "{name} is registered, but {} does not list it", self.data);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn lists(&self, name: &str) -> bool {
        let models = http::call(self.data, "GET", "/v1/models", b"").and_then(|answer| answer.json());
        models
            .is_ok_and(|models| models["data"].as_array().is_some_and(|rows| rows.iter().any(|row| row["id"] == name)))
    }

    /// Instances of a model now, whatever their state.
    pub fn instances(&self, model: &str) -> Result<usize> {
        let answer = http::call(self.admin, "GET", "/v1/foreshock/instances", b"")?.json()?;
        Ok(count_objects(&answer, &|object| object.get("model").is_some_and(|name| name == model)))
    }

    /// Waits until a model has scaled to zero.
    pub fn wait_zero(&self, model: &str) -> Result<()> {
        let begun = Instant::now();
        while self.instances(model)? > 0 {
            ensure!(begun.elapsed() < PATIENCE, "{model} still has instances after {} s", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// SIGTERM, then waits until the process is gone.
    pub fn stop(&self) -> Result<()> {
        shell::quiet(&mut command("kill", &["-TERM", &self.pid.to_string()]))?;
        let begun = Instant::now();
        while Self::running(&self.state).is_some_and(|serve| serve.pid == self.pid) {
            ensure!(begun.elapsed() < PATIENCE, "pid {} still runs {} s after SIGTERM", self.pid, PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

/// A serve that lives as long as this value: for benchmarks.
pub struct Owned {
    child: Child,
    pub serve: Serve,
    /// Goes with it.
    scratch: Option<Scratch>,
}

impl Owned {
    /// Starts one on free ports with a fresh state folder under target/.
    pub fn start(args: &[&str]) -> Result<Self> {
        let state = Scratch::new("bench-state")?;
        let mut owned = Self::start_on(&state.path, args)?;
        owned.scratch = Some(state);
        Ok(owned)
    }

    /// The same on a state folder that stays.
    pub fn start_on(state: &Path, args: &[&str]) -> Result<Self> {
        let loopback = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (data, admin) = (loopback(free_port()?), loopback(free_port()?));
        let mut foreshock = command(layout::foreshock(), &[]);
        let child = spawn_serve(&mut foreshock, state, data, admin, args)?;
        let serve = Serve { pid: child.id(), data, admin, state: state.to_owned() };
        let mut owned = Self { child, serve, scratch: None };
        owned.serve.wait_ready(&mut owned.child)?;
        Ok(owned)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = quiet(&mut command("kill", &["-TERM", &self.child.id().to_string()]));
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A folder under target/ that goes when this value does.
struct Scratch {
    path: PathBuf,
}

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = layout::target().join(format!("{name}-{}", std::process::id()));
        make_folder(&path)?;
        Ok(Self { path })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn spawn_serve(base: &mut Command, state: &Path, data: SocketAddr, admin: SocketAddr, args: &[&str]) -> Result<Child> {
    let path = log_path(state);
    make_folder(path.parent().unwrap_or(state))?;
    let log = File::options().create(true).append(true).open(&path)?;
    base.args(["serve", "--listen", &data.to_string(), "--admin", &admin.to_string(), "--state"])
        .arg(state)
        .args(args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("cannot start foreshock serve")
}

fn log_path(state: &Path) -> PathBuf {
    state.join("logs/serve.log")
}

fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(12)..].join("\n")
}

fn address_after(words: &[String], option: &str, default_port: u16) -> SocketAddr {
    let given = words.iter().position(|word| word == option).and_then(|at| words.get(at + 1)?.parse().ok());
    given.unwrap_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, default_port)))
}

/// Objects anywhere in a JSON value that satisfy a condition; those inside a match are not counted.
fn count_objects(value: &serde_json::Value, wanted: &dyn Fn(&serde_json::Value) -> bool) -> usize {
    match value {
        object if object.is_object() && wanted(object) => 1,
        serde_json::Value::Object(fields) => fields.values().map(|inner| count_objects(inner, wanted)).sum(),
        serde_json::Value::Array(items) => items.iter().map(|inner| count_objects(inner, wanted)).sum(),
        _ => 0,
    }
}

/// A TCP port of 127.0.0.1 that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_come_from_the_command_line() {
        let words: Vec<String> =
            ["foreshock", "serve", "--listen", "127.0.0.1:9000"].into_iter().map(str::to_owned).collect();
        assert_eq!(address_after(&words, "--listen", 8080).port(), 9000);
        assert_eq!(address_after(&words, "--admin", 8081).port(), 8081);
    }

    #[test]
    fn instances_are_counted_wherever_they_stand() {
        let answer = serde_json::json!({"instances": [{"model": "a", "in": {"model": "a"}}, {"model": "b"}]});
        assert_eq!(count_objects(&answer, &|object| object.get("model").is_some_and(|name| name == "a")), 1);
    }
}
