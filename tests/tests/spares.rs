//! Spare processes: a start adopts one, whatever is killed at whatever moment nothing is lost, a restarted serve takes them
//! over, and strangers at their socket achieve nothing.

use anyhow::{Context, Result, ensure};
use blackbox::serve::{engine_pids, kill_engines};
use blackbox::{Foreshock, stream};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

fn ask(foreshock: &Foreshock) -> Result<String> {
    let request = json!({
        "model": "smollm2", "prompt": "Two and two", "max_tokens": 24, "temperature": 0, "stream": true,
    });
    let answer = stream::post(foreshock.data, "/v1/completions", &request)?;
    answer.complete()?;
    Ok(answer.text())
}

fn spares(foreshock: &Foreshock) -> Result<Vec<i32>> {
    let seen = foreshock.admin_get("spares")?;
    let ready = seen["ready"].as_array().context("no list")?;
    Ok(ready.iter().filter_map(|spare| i32::try_from(spare["pid"].as_i64()?).ok()).collect())
}

/// Waits until there is one and it has read the model's head; answers its process.
fn spare(foreshock: &Foreshock) -> Result<i32> {
    foreshock.wait_until("a spare process that has read the head", |running| {
        Ok(running.admin_get("spares")?["ready"][0]["heads"] == 1)
    })?;
    spares(foreshock)?.first().copied().context("it went")
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    Ok(kill_process(Pid::from_raw(pid).context("no pid")?, signal)?)
}

/// Kills a process that may have ended by itself since it was listed.
fn kill(pid: i32) -> Result<()> {
    let gone = Path::new("/proc").join(pid.to_string()).exists().then(|| signal(pid, Signal::KILL));
    match gone {
        Some(Err(error)) if Path::new("/proc").join(pid.to_string()).exists() => Err(error),
        _ => Ok(()),
    }
}

fn until_zero(foreshock: &Foreshock) -> Result<()> {
    foreshock.wait_until("the model is at zero", |running| Ok(engine_pids(running.state()).is_empty()))
}

fn newest_start(foreshock: &Foreshock) -> Result<Value> {
    foreshock.wait_until("the start is recorded", |running| {
        Ok(running.admin_get("starts")?["data"].as_array().is_some_and(|rows| !rows.is_empty()))
    })?;
    Ok(foreshock.admin_get("starts")?["data"][0].clone())
}

/// Kills what a folder that outlives its `Foreshock` has when the test ends, well or not.
struct Cleanup<'a>(&'a Path);

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        kill_engines(self.0);
    }
}

#[test]
fn a_start_makes_an_engine_of_a_spare_process() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "60"])?;
    ensure!(foreshock.admin_get("spares")?["wanted"] == 0, "wanted without any model");
    foreshock.add_model("smollm2")?;
    let pid = spare(&foreshock)?;
    ensure!(engine_pids(foreshock.state()).is_empty(), "a spare process counts as an engine");
    let text = ask(&foreshock)?;
    ensure!(engine_pids(foreshock.state()) == [pid], "{pid} was not adopted: {:?}", engine_pids(foreshock.state()));
    let start = newest_start(&foreshock)?;
    ensure!(start["spare"] == true, "{start}");
    let instance = start["instance"].as_str().context("no name")?;
    let socket = foreshock.state().join("engines").join(format!("{instance}.sock"));
    ensure!(socket.exists(), "its socket is not where an engine's is");
    let log = fs::read_to_string(foreshock.state().join("logs").join(format!("{instance}.log")))?;
    ensure!(log.contains("adopts a model"), "its log is another: {log}");
    ensure!(foreshock.metric_sum("foreshock_spare_adoptions_total", &["outcome=\"adopted\""])? == 1.0, "not counted");
    // The next one is made once the start is over, and an adopted engine ends as any other does.
    foreshock.wait_until("the next spare process", |running| Ok(spares(running)?.iter().any(|next| *next != pid)))?;
    signal(pid, Signal::TERM)?;
    until_zero(&foreshock)?;
    ensure!(!socket.exists(), "its socket is left behind");
    ensure!(ask(&foreshock)? == text, "another answer from another process");
    Ok(())
}

#[test]
fn no_kill_of_a_spare_process_loses_a_request() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "60"])?;
    foreshock.add_model("smollm2")?;
    let pid = spare(&foreshock)?;
    let text = ask(&foreshock)?;
    signal(pid, Signal::KILL)?;
    until_zero(&foreshock)?;
    // Before, around and after the adoption: the last kills hit the engine that it has become.
    for wait_us in [None, Some(0), Some(300), Some(800), Some(2_000), Some(5_000), Some(20_000)] {
        let pid = spare(&foreshock)?;
        let asked = std::thread::scope(|scope| -> Result<String> {
            if wait_us.is_none() {
                kill(pid)?;
            }
            let asking = scope.spawn(|| ask(&foreshock));
            if let Some(wait_us) = wait_us {
                std::thread::sleep(Duration::from_micros(wait_us));
                kill(pid)?;
            }
            asking.join().expect("the client panicked")
        })?;
        ensure!(asked == text, "{wait_us:?}: {asked:?}");
        engine_pids(foreshock.state()).into_iter().try_for_each(kill)?;
        until_zero(&foreshock)?;
    }
    ensure!(foreshock.metric_sum("foreshock_failed_streams_total", &[])? == 0.0, "a stream failed");
    Ok(())
}

#[test]
fn a_spare_process_that_hangs_is_replaced_by_a_spawn() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "60"])?;
    foreshock.add_model("smollm2")?;
    let pid = spare(&foreshock)?;
    signal(pid, Signal::STOP)?;
    ensure!(!ask(&foreshock)?.is_empty(), "no answer");
    let engines = engine_pids(foreshock.state());
    ensure!(engines.len() == 1 && engines != [pid], "{engines:?} beside {pid}");
    ensure!(newest_start(&foreshock)?["spare"] == false, "taken for one that was adopted");
    ensure!(foreshock.metric_sum("foreshock_spare_adoptions_total", &["outcome=\"failed\""])? == 1.0, "not counted");
    ensure!(!Path::new("/proc").join(pid.to_string()).join("fd/0").exists(), "the one that hangs is left behind");
    Ok(())
}

#[test]
fn a_restarted_serve_takes_spare_processes_over() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let _cleanup = Cleanup(folder.path());
    let mut first = Foreshock::start_in(folder.path(), &["--spares", "2"])?;
    first.add_model("smollm2")?;
    first.wait_until("two spare processes", |running| Ok(spares(running)?.len() == 2))?;
    let mut before = spares(&first)?;
    first.kill_serve()?;
    let second = Foreshock::start_in(folder.path(), &["--spares", "2", "--idle-seconds", "60"])?;
    before.sort_unstable();
    second.wait_until("both are taken over", |running| {
        let mut now = spares(running)?;
        now.sort_unstable();
        Ok(now == before)
    })?;
    ensure!(!ask(&second)?.is_empty(), "no answer");
    let engines = engine_pids(folder.path());
    ensure!(engines.len() == 1 && before.contains(&engines[0]), "{engines:?} is none of {before:?}");
    ensure!(second.terminate()?.success(), "SIGTERM is no clean exit");
    for pid in before {
        ensure!(!Path::new("/proc").join(pid.to_string()).join("fd/0").exists(), "{pid} is left behind");
    }
    Ok(())
}

#[test]
fn none_where_none_are_wanted_and_starts_go_on() -> Result<()> {
    let foreshock = Foreshock::start(&["--spares", "0"])?;
    foreshock.add_model("smollm2")?;
    ensure!(!ask(&foreshock)?.is_empty(), "no answer");
    ensure!(newest_start(&foreshock)?["spare"] == false && spares(&foreshock)?.is_empty(), "there was one");
    Ok(())
}

#[test]
fn strangers_at_its_socket_achieve_nothing() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "60"])?;
    foreshock.add_model("smollm2")?;
    let pid = spare(&foreshock)?;
    let sockets = fs::read_dir(foreshock.state().join("spares"))?.collect::<std::io::Result<Vec<_>>>()?;
    let socket = sockets.first().context("no socket")?.path();
    let long = "x".repeat(600 << 10);
    let lines = [
        "\u{0}\u{1}garbage".to_owned(),
        "{}".to_owned(),
        long,
        json!({"command": "adopt", "epoch": 0, "args": ["--model", "/etc/passwd"]}).to_string(),
        json!({"command": "adopt", "epoch": 1, "args": []}).to_string(),
        json!({"command": "adopt", "epoch": 1, "args": ["--spare"]}).to_string(),
        json!({"command": "adopt", "epoch": 1, "args": ["--model", "/dev/null", "--no-such-option"]}).to_string(),
        json!({"command": "adopt", "epoch": 1, "args": ["--model", "/no/such/file"]}).to_string(),
        json!({"command": "adapters", "epoch": 1, "adapters": []}).to_string(),
        json!({"command": "prepare", "epoch": 0, "heads": []}).to_string(),
        json!({"command": "renew", "epoch": 1, "lease_ms": 0}).to_string(),
    ];
    for line in lines {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        // It may have had enough before it has read all.
        let _ = stream.write_all(line.as_bytes()).and_then(|()| stream.write_all(b"\n"));
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        ensure!(answer.contains("refused"), "{} was answered {answer:?}", &line[..line.len().min(80)]);
    }
    ensure!(spares(&foreshock)? == [pid], "it did not outlive them");
    ensure!(!ask(&foreshock)?.is_empty(), "no answer");
    ensure!(engine_pids(foreshock.state()) == [pid], "it was not adopted");
    Ok(())
}
