//! Bad input and a hostile surrounding, against the built binary: one clear answer each, and the server lives on.

use anyhow::{Result, ensure};
use blackbox::{Foreshock, demo_model, foreshock_binary, http};
use serde_json::json;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};

/// Runs the binary and expects it to fail with this exit code and one line that holds every part.
fn check_fails(args: &[&str], code: i32, parts: &[&str]) -> Result<()> {
    let output = run(args)?;
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(code), "{args:?}: {} {message}", output.status);
    ensure!(message.trim_end().lines().count() == 1, "{args:?}: not one line: {message}");
    for part in parts {
        ensure!(message.contains(part), "{args:?}: no {part:?} in: {message}");
    }
    Ok(())
}

fn run(args: &[&str]) -> Result<Output> {
    Ok(Command::new("timeout").arg("30").arg(foreshock_binary()?).args(args).output()?)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// Posts bytes and expects this status and the OpenAI error object with this part in its message.
fn check_refused(addr: SocketAddr, path: &str, body: &[u8], status: u16, part: &str) -> Result<()> {
    let answer = http::request(addr, "POST", path, &[("content-type", "application/json")], body)?;
    let shown = String::from_utf8_lossy(&body[..body.len().min(80)]);
    ensure!(answer.status == status, "{shown}: {} {}", answer.status, answer.text());
    let error = answer.json()?["error"].clone();
    let message = error["message"].as_str().unwrap_or_default();
    ensure!(message.contains(part), "{shown}: no {part:?} in {message:?}");
    ensure!(error["type"].is_string() && error.get("param").is_some() && error.get("code").is_some(), "{error}");
    ensure!(answer.header("x-request-id").is_some(), "no x-request-id: {}", answer.head);
    Ok(())
}

#[test]
fn requests_are_refused_in_the_openai_shape_before_any_engine_starts() -> Result<()> {
    let serve = Foreshock::start(&[])?;
    serve.add_model("smollm2")?;
    let check = |body: &[u8], status, part| check_refused(serve.data, "/v1/chat/completions", body, status, part);
    check(b"{", 400, "")?;
    check(b"", 400, "")?;
    check(b"\xff\xfe{}", 400, "")?;
    check(b"[]", 400, "")?;
    check(br#"{"model": "nope", "messages": [{"role": "user", "content": "x"}]}"#, 404, "nope")?;
    check(br#"{"model": "smollm2"}"#, 400, "messages")?;
    check(br#"{"model": "smollm2", "messages": "hi"}"#, 400, "messages")?;
    check(br#"{"model": "smollm2", "messages": []}"#, 400, "messages")?;
    check(br#"{"model": 7, "messages": [{"role": "user", "content": "x"}]}"#, 400, "model")?;
    let with = |extra: &str| {
        format!(r#"{{"model": "smollm2", "messages": [{{"role": "user", "content": "x"}}], {extra}}}"#).into_bytes()
    };
    check(&with(r#""max_tokens": 0"#), 400, "max_tokens")?;
    check(&with(r#""max_tokens": -1"#), 400, "max_tokens")?;
    check(&with(r#""max_tokens": "9""#), 400, "max_tokens")?;
    check(&with(r#""temperature": 3"#), 400, "temperature")?;
    check(&with(r#""top_p": 0"#), 400, "top_p")?;
    check(&with(r#""nonsense": 1"#), 400, "nonsense")?;
    check(&with(r#""n": 17"#), 400, "n")?;
    check(&with(r#""max_tokens": 100000"#), 400, "context")?;
    let ids = json!({"model": "smollm2", "prompt": vec![504; 8200], "max_tokens": 4}).to_string();
    check_refused(serve.data, "/v1/completions", ids.as_bytes(), 400, "8192")?;
    let outside = json!({"model": "smollm2", "prompt": [4_000_000], "max_tokens": 4}).to_string();
    check_refused(serve.data, "/v1/completions", outside.as_bytes(), 400, "")?;
    let huge = vec![b' '; 8 << 20];
    check(&huge, 413, "bytes")?;
    check_refused(serve.data, "/v1/nothing", b"{}", 404, "")?;
    let wrong_method = http::get(serve.data, "/v1/chat/completions")?;
    ensure!(wrong_method.status == 405, "{}", wrong_method.status);

    let body = r#"{"model": "smollm2", "messages": []}"#;
    let chunked = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
        body.len()
    );
    let answer = http::raw(serve.data, chunked.as_bytes())?;
    ensure!(answer.status == 400 && answer.text().contains("messages"), "chunked: {} {}", answer.status, answer.text());
    let starts = serve.metric_sum("foreshock_cold_starts_total", &[])?;
    ensure!(starts == 0.0, "bad requests started {starts} engines");

    let good = http::request(
        serve.data,
        "POST",
        "/v1/chat/completions",
        &[("content-type", "application/json")],
        &with(r#""max_tokens": 4"#),
    )?;
    ensure!(good.status == 200, "after all that: {} {}", good.status, good.text());
    Ok(())
}

#[test]
fn corrupt_checkpoints_are_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let whole = std::fs::read(demo_model()?)?;
    let write = |name: &str, bytes: &[u8]| -> Result<std::path::PathBuf> {
        let path = folder.path().join(name);
        std::fs::File::create(&path)?.write_all(bytes)?;
        Ok(path)
    };
    let mut magic = whole[..1 << 20].to_vec();
    magic[0] ^= 0xff;
    let cases = [
        (write("empty.gguf", b"")?, ""),
        (write("short.gguf", &whole[..100])?, ""),
        (write("cut.gguf", &whole[..whole.len() - 4096])?, "tensor"),
        (write("magic.gguf", &magic)?, "magic"),
        (folder.path().join("absent.gguf"), "absent.gguf"),
    ];
    let state = folder.path().join("state");
    for (path, part) in &cases {
        check_fails(&["models", "add", "bad", text(path), "--state", text(&state)], 2, &[part])?;
        check_fails(&["engine", "--model", text(path), "--port", "0"], 2, &[part])?;
    }
    let listed = run(&["models", "ls", "--state", text(&state)])?;
    ensure!(!String::from_utf8_lossy(&listed.stdout).contains("bad"), "a corrupt model was registered");
    Ok(())
}

#[test]
fn surroundings_that_do_not_fit_are_one_clear_line() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port().to_string();
    let listen = format!("127.0.0.1:{port}");
    let state = folder.path().join("state");
    check_fails(&["serve", "--listen", &listen, "--admin", "127.0.0.1:0", "--state", text(&state)], 3, &[&port])?;
    let model = demo_model()?;
    check_fails(&["engine", "--model", text(&model), "--port", &port], 3, &[&port])?;

    let file = folder.path().join("file");
    std::fs::write(&file, "x")?;
    let below = file.join("state");
    let serve = |state: &str| {
        vec![
            "serve".to_owned(),
            "--listen=127.0.0.1:0".into(),
            "--admin=127.0.0.1:0".into(),
            format!("--state={state}"),
        ]
    };
    let args = serve(text(&below));
    check_fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2, &[text(&below)])?;

    let broken = folder.path().join("broken");
    std::fs::create_dir(&broken)?;
    std::fs::write(broken.join("state.db"), vec![b'x'; 8192])?;
    let args = serve(text(&broken));
    check_fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2, &["state.db"])?;

    let mut args = serve(text(&state));
    args.push("--cores=4096".into());
    check_fails(&args.iter().map(String::as_str).collect::<Vec<_>>(), 2, &["4096"])?;
    Ok(())
}

#[test]
fn registry_survives_and_answers_by_name() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let state = text(folder.path());
    let model = demo_model()?;
    let good = |args: &[&str]| -> Result<String> {
        let output = run(args)?;
        ensure!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    good(&["models", "add", "one", text(&model), "--state", state])?;
    good(&["models", "add", "one", text(&model), "--state", state])?;
    ensure!(good(&["models", "ls", "--state", state])?.contains("one"));
    ensure!(good(&["models", "inspect", "one", "--state", state])?.contains("llama"));
    check_fails(&["models", "add", "no good!", text(&model), "--state", state], 2, &["no good!"])?;
    check_fails(&["models", "inspect", "two", "--state", state], 2, &["two"])?;
    check_fails(&["models", "rm", "two", "--state", state], 2, &["two"])?;
    good(&["models", "rm", "one", "--state", state])?;
    ensure!(!good(&["models", "ls", "--state", state])?.contains("one"));
    Ok(())
}
