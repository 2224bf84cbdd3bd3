//! `foreshock top` against a live serve: a frame as text, the live view on a pseudo-terminal that is left as it was
//! found, and a clear word where nobody serves.

use anyhow::{Context, Result, ensure};
use blackbox::{Foreshock, foreshock_binary, free_port, stream};
use serde_json::json;
use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn once(admin: &str) -> Result<Output> {
    Ok(Command::new(foreshock_binary()?).args(["top", "--once", "--admin", admin]).output()?)
}

#[test]
fn a_frame_shows_what_was_served() -> Result<()> {
    let foreshock = Foreshock::start(&["--idle-seconds", "60"])?;
    foreshock.add_model("alpha")?;
    let body = json!({"model": "alpha", "prompt": "Once", "max_tokens": 8, "stream": true, "ignore_eos": true});
    stream::post(foreshock.data, "/v1/completions", &body)?;
    let admin = foreshock.admin.to_string();
    foreshock.wait_until("the stream is on the board", |_| {
        let text = String::from_utf8(once(&admin)?.stdout)?;
        let gateway = text.lines().find(|line| line.trim_start().starts_with("gateway"));
        Ok(gateway.is_some_and(|line| line.split_whitespace().nth(1) == Some("1")) && text.contains("ready"))
    })?;
    let frame = String::from_utf8(once(&admin)?.stdout)?;
    for part in ["> alpha", "LATENCY of alpha, since start", "gpu: ", "nothing serves alpha"] {
        ensure!(frame.contains(part), "{part} in:\n{frame}");
    }
    on_a_terminal(&admin)
}

/// The live view, under script(1) as its terminal: it draws, ends at `q`, and leaves the other screen again.
fn on_a_terminal(admin: &str) -> Result<()> {
    let line = format!("stty rows 24 columns 80; {} top --admin {admin}", foreshock_binary()?.display());
    let mut child = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("script(1), of util-linux")?;
    let mut keys = child.stdin.take().context("stdin")?;
    // Not before it reads keys: what comes earlier is the terminal's own echo.
    std::thread::sleep(Duration::from_secs(2));
    keys.write_all(b"q")?;
    keys.flush()?;
    let output = child.wait_with_output()?;
    let screen = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}: {screen}", output.status);
    ensure!(screen.contains("foreshock top") && screen.contains("alpha"), "{screen}");
    ensure!(screen.contains("\x1b[?1049h") && screen.contains("\x1b[?1049l"), "{screen}");
    Ok(())
}

#[test]
fn where_nobody_serves_it_says_so() -> Result<()> {
    let output = once(&format!("127.0.0.1:{}", free_port()?))?;
    let error = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && error.contains("no foreshock serve answers on the admin port"), "{error}");
    Ok(())
}
