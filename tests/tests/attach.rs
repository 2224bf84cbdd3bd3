//! `foreshock attach` on engines that somebody else runs, and that ran before: ours by itself, and a server in
//! Python. What it says is compared with what the clients did; what cannot be watched is named.

use anyhow::{Context, Result, ensure};
use blackbox::serve::sum_series;
use blackbox::{demo_model, foreshock_binary, free_port, http, stream, workspace_root};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// A process that is killed when dropped.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?))
    }

    fn pid(&self) -> String {
        self.0.id().to_string()
    }

    /// Lines of its output, as they come.
    fn lines(&mut self) -> Result<mpsc::Receiver<String>> {
        let output = BufReader::new(self.0.stdout.take().context("no pipe")?);
        let (told, lines) = mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).all(|line| told.send(line).is_ok()));
        Ok(lines)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn attach(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(foreshock_binary()?);
    command.arg("attach").args(args);
    Ok(command)
}

/// An attach that prints JSON, once it watches; None, with a word, where the probes may not be attached.
fn watch(args: &[&str]) -> Result<Option<(Running, mpsc::Receiver<String>)>> {
    let mut attached =
        Running::start(attach(&[args, &["--json", "--every-ms", "100"]].concat())?.stderr(Stdio::piped()))?;
    let lines = attached.lines()?;
    match lines.recv_timeout(PATIENCE) {
        Ok(line) => {
            ensure!(serde_json::from_str::<Value>(&line)?["watching"][0]["listening"] == true, "{line}");
            Ok(Some((attached, lines)))
        }
        Err(_) => {
            let mut error = String::new();
            std::io::Read::read_to_string(&mut attached.0.stderr.take().context("no pipe")?, &mut error)?;
            ensure!(error.contains("missing CAP_"), "{error}");
            println!("skipped: {error}");
            Ok(None)
        }
    }
}

/// The first line that is as wanted.
fn wait_for(lines: &mpsc::Receiver<String>, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + PATIENCE;
    let mut last = String::new();
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        let value = serde_json::from_str(&line).with_context(|| line.clone())?;
        if wanted(&value) {
            return Ok(value);
        }
        last = line;
    }
    anyhow::bail!("waited for {what}; the last line is {last}")
}

#[test]
fn our_engine_as_somebody_elses() -> Result<()> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let port = addr.port().to_string();
    let mut engine = Command::new(foreshock_binary()?);
    engine.arg("engine").arg("--model").arg(demo_model()?).args(["--name", "m", "--port", &port]);
    let mut engine = Running::start(engine.stderr(Stdio::null()))?;
    let deadline = Instant::now() + PATIENCE;
    while !http::get(addr, "/readyz").is_ok_and(|answer| answer.status == 200) {
        ensure!(Instant::now() < deadline, "the engine is not ready");
        std::thread::sleep(Duration::from_millis(50));
    }
    let Some((mut attached, lines)) = watch(&["--pid", &engine.pid(), "--name", "theirs"])? else { return Ok(()) };
    let body = json!({"model": "m", "prompt": "Once", "max_tokens": 9, "stream": true, "ignore_eos": true});
    for _ in 0..3 {
        stream::post(addr, "/v1/completions", &body)?.complete()?;
    }
    http::get(addr, "/healthz")?;
    let wrong = http::post_json(addr, "/v1/completions", &json!({"model": "nobody", "prompt": "a"}))?;
    ensure!(wrong.status == 404, "{}", wrong.status);
    let frame = wait_for(&lines, "five requests", |frame| {
        let ended = &frame["ended"];
        ["answered", "errors", "polls"].iter().filter_map(|kind| ended[kind].as_u64()).sum::<u64>() == 5
    })?;
    ensure!(frame["ended"] == json!({"answered": 3, "errors": 1, "broken_off": 0, "lost": 0, "polls": 1}), "{frame}");
    ensure!(frame["name"] == "theirs" && frame["port"] == addr.port(), "{frame}");
    ensure!(frame["service"]["first_tokens"] == 3 && frame["service"]["ttft_ms"].as_f64() > Some(0.0), "{frame}");
    ensure!(frame["counts"]["syns"] == 5 && frame["counts"]["requests"] == 5, "{frame}");
    ensure!(frame["probes"]["events_lost"] == 0 && frame["estimate"].is_null(), "{frame}");

    engine.0.kill()?;
    engine.0.wait()?;
    let end = wait_for(&lines, "the engine's end", |line| line["process_ended"].is_object())?;
    ensure!(end["process_ended"]["reason"]["signaled"]["signal"] == 9, "{end}");
    let status = attached.0.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

#[test]
fn a_server_that_ran_before_is_learned_from_its_packets() -> Result<()> {
    let script = workspace_root().join("tests/tests/attach/server.py");
    let mut server = Running::start(Command::new("python3").arg(script).arg("2"))?;
    let port: u16 = server.lines()?.recv_timeout(PATIENCE)?.trim().parse()?;
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    // A connection that is there already, and goes on being used.
    let mut early = std::net::TcpStream::connect(addr)?;
    let body = json!({"prompt": "Once upon a time", "max_tokens": 12, "stream": true});
    stream::post_on(&mut early, "/v1/completions", &body, false)?.complete()?;
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let listen = metrics.to_string();
    let args = ["--port", &port.to_string(), "--name", "py", "--slo-ttft-ms", "400", "--listen", &listen];
    let Some((mut attached, lines)) = watch(&args)? else { return Ok(()) };
    stream::post_on(&mut early, "/v1/completions", &body, true)?.complete()?;
    std::thread::scope(|scope| {
        let client = || (0..12).try_for_each(|_| stream::post(addr, "/v1/completions", &body)?.complete());
        let clients: Vec<_> = (0..6).map(|_| scope.spawn(client)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client"))
    })?;
    ensure!(http::post_json(addr, "/busy", &json!({}))?.status == 503, "busy");
    let frame = wait_for(&lines, "an estimate", |frame| {
        frame["ended"]["errors"] == 1 && frame["estimate"]["streams"].as_u64() >= Some(73)
    })?;
    ensure!(frame["ended"]["answered"] == 73, "{frame}");
    ensure!(frame["estimate"]["slots"] == 2, "two places, six clients: {frame}");
    ensure!(frame["estimate"]["knee_per_s"].as_f64() > Some(0.0), "{frame}");
    exported(metrics)?;
    rustix::process::kill_process(rustix::process::Pid::from_child(&attached.0), rustix::process::Signal::INT)?;
    let status = attached.0.wait()?;
    ensure!(status.success(), "{status}");
    Ok(())
}

/// What it counted is on its metrics page, at most a second later.
fn exported(metrics: SocketAddr) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = http::get(metrics, "/metrics")?.text();
        let count = sum_series(&page, "foreshock_kernel_requests_total", &["port_role=\"foreign\""]);
        let all = ["batch", "queue", "load_requests_per_second", "knee_requests_per_second", "headroom_ratio"]
            .iter()
            .all(|name| page.contains(&format!("foreshock_outside_{name}{{model=\"py\"}}")));
        // 73 streams, and one request that was refused.
        if all && count == 74.0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{count} requests; all engine series: {all}; in:\n{page}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn refused(args: &[&str], code: i32, words: &str) -> Result<()> {
    let output = attach(args)?.output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(code) && error.contains(words), "{args:?}: {} {error}", output.status);
    Ok(())
}

#[test]
fn what_cannot_be_watched_is_named() -> Result<()> {
    refused(&["--pid", "4194999"], 2, "there is no process 4194999")?;
    let idle = Running::start(Command::new("sleep").arg("60"))?;
    refused(&["--pid", &idle.pid()], 2, "(sleep) listens on no TCP port")?;
    refused(&["--port", "1", "--slo-quantile", "1.5"], 2, "--slo-quantile must lie between 0 and 1")?;
    refused(&[], 2, "--pid")?;
    if !rustix::process::geteuid().is_root() {
        return refused(&["--port", "1", "--once"], 1, "missing CAP_");
    }
    let output = Command::new("setpriv")
        .args(["--inh-caps=-all", "--bounding-set=-all"])
        .arg(foreshock_binary()?)
        .args(["attach", "--port", "1", "--once"])
        .output()
        .context("setpriv(1), of util-linux")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1) && error.contains("missing CAP_BPF"), "{} {error}", output.status);
    Ok(())
}

#[test]
fn a_port_where_nobody_listens_is_watched_all_the_same() -> Result<()> {
    let port = free_port()?.to_string();
    let output = attach(&["--port", &port, "--once", "--every-ms", "100"])?.output()?;
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if error.contains("missing CAP_") {
        println!("skipped: {error}");
        return Ok(());
    }
    ensure!(output.status.success() && text.contains("nobody listens there yet"), "{text}{error}");
    ensure!(text.contains("0.00 requests/s") && text.contains("knee not known yet"), "{text}");
    Ok(())
}
