//! The gateway's promises at its edges: a client that leaves costs nothing more, a full queue says so, and a
//! graceful stop lets running streams end.

use anyhow::{Context, Result, ensure};
use blackbox::{Foreshock, http, stream};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

fn request(max_tokens: u32) -> Value {
    json!({
        "model": "smollm2", "prompt": "Once upon a time", "max_tokens": max_tokens, "temperature": 0,
        "ignore_eos": true, "stream": true, "stream_options": {"include_usage": true},
    })
}

/// Sends a streaming request and reads until its first token is there.
fn open_stream(serve: &Foreshock, max_tokens: u32) -> Result<TcpStream> {
    let body = request(max_tokens).to_string();
    let mut socket = TcpStream::connect(serve.data)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(format!("{head}{body}").as_bytes())?;
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    while !String::from_utf8_lossy(&seen).contains("data:") {
        let n = socket.read(&mut buffer)?;
        ensure!(n > 0, "closed before the first token: {}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..n]);
    }
    Ok(socket)
}

#[test]
fn a_client_that_leaves_stops_the_work_in_the_engine() -> Result<()> {
    let serve = Foreshock::start(&["--idle-seconds", "60"])?;
    serve.add_model("smollm2")?;
    drop(open_stream(&serve, 8000)?);
    serve.wait_until("nothing is in flight", |running| {
        let in_flight = running.metric_sum("foreshock_in_flight_requests", &[])?;
        let sequences = running.metric_sum("foreshock_engine_running_sequences", &[])?;
        Ok(in_flight == 0.0 && sequences == 0.0)
    })?;
    let decoded = serve.metric_sum("foreshock_engine_tokens_total", &["phase=\"decode\""])?;
    ensure!(decoded < 4000.0, "the engine went on for {decoded} tokens");
    Ok(())
}

#[test]
fn a_full_queue_is_429_with_retry_after() -> Result<()> {
    // Advisory mode starts nothing, so whatever is held stays held.
    let serve = Foreshock::start(&["--advise", "--hold-limit", "2", "--hold-timeout-ms", "4000"])?;
    serve.add_model("smollm2")?;
    let body = json!({"model": "smollm2", "prompt": "Hello", "max_tokens": 4});
    std::thread::scope(|scope| -> Result<()> {
        let held: Vec<_> =
            (0..2).map(|_| scope.spawn(|| http::post_json(serve.data, "/v1/completions", &body))).collect();
        serve.wait_until("two requests are held", |running| {
            Ok(running.metric_sum("foreshock_held_requests", &[])? == 2.0)
        })?;
        let refused = http::post_json(serve.data, "/v1/completions", &body)?;
        ensure!(refused.status == 429, "{} {}", refused.status, refused.text());
        let retry_after_s: u32 = refused.header("retry-after").context("no Retry-After")?.parse()?;
        ensure!(retry_after_s >= 1, "Retry-After: {retry_after_s}");
        ensure!(refused.json()?["error"]["message"].as_str().is_some_and(|text| text.contains("full")), "{refused:?}");
        for request in held {
            let answer = request.join().expect("client panicked")?;
            ensure!(answer.status == 503, "held to its time-out: {} {}", answer.status, answer.text());
        }
        Ok(())
    })
}

#[test]
fn a_graceful_stop_lets_running_streams_end() -> Result<()> {
    let serve = Foreshock::start(&["--idle-seconds", "60", "--drain-timeout-ms", "30000"])?;
    serve.add_model("smollm2")?;
    let expected = stream::post(serve.data, "/v1/completions", &request(150))?;
    expected.complete()?;
    let data = serve.data;
    let in_flight = |serve: &Foreshock| serve.metric_sum("foreshock_in_flight_requests", &[]);
    // The first stream's end may be counted a moment after its client has it.
    serve.wait_until("the first stream is over", |serve| Ok(in_flight(serve)? == 0.0))?;
    let running = std::thread::spawn(move || stream::post(data, "/v1/completions", &request(150)));
    serve.wait_until("the stream runs", |serve| Ok(in_flight(serve)? > 0.0))?;
    ensure!(serve.terminate()?.success(), "SIGTERM is no clean exit");
    let answer = running.join().expect("client panicked")?;
    answer.complete()?;
    ensure!(answer.text() == expected.text(), "the stream was changed by the stop: {:?}", answer.text());
    ensure!(TcpStream::connect(data).is_err(), "still listening after its end");
    Ok(())
}

#[test]
fn whoever_was_connected_when_the_stop_began_gets_an_answer() -> Result<()> {
    let serve = Foreshock::start(&["--idle-seconds", "60"])?;
    serve.add_model("smollm2")?;
    let data = serve.data;
    // One request after another from several clients until connections are refused: whatever the moment at which
    // the stop meets them, those that got a connection get the whole stream or the error in its shape.
    let ask = move || -> Result<usize> {
        let mut answered = 0;
        while let Ok(probe) = TcpStream::connect(data) {
            drop(probe);
            let answer = match http::post_json(
                data,
                "/v1/completions",
                &json!({"model": "smollm2", "prompt": "Hi", "max_tokens": 2}),
            ) {
                Ok(answer) => answer,
                Err(error) if refused(&error) => break,
                Err(error) => return Err(error),
            };
            ensure!(matches!(answer.status, 200 | 503), "{} {}", answer.status, answer.text());
            answer.json().with_context(|| format!("no whole JSON: {}", answer.text()))?;
            answered += 1;
        }
        Ok(answered)
    };
    let clients: Vec<_> = (0..8).map(|_| std::thread::spawn(ask)).collect();
    serve.wait_until("requests run", |serve| Ok(serve.metric_sum("foreshock_in_flight_requests", &[])? > 0.0))?;
    ensure!(serve.terminate()?.success(), "SIGTERM is no clean exit");
    for client in clients {
        ensure!(client.join().expect("client panicked")? > 0, "a client had no answer at all");
    }
    Ok(())
}

/// Whether the request never left: a client without a connection has lost nothing.
fn refused(error: &anyhow::Error) -> bool {
    error.to_string().starts_with("connecting to")
}

#[test]
fn turns_of_a_conversation_are_told_from_other_requests() -> Result<()> {
    let serve = Foreshock::start(&["--idle-seconds", "60"])?;
    serve.add_model("smollm2")?;
    let ask = |messages: &[(&str, &str)]| -> Result<String> {
        let messages: Vec<Value> = messages.iter().map(|(role, text)| json!({"role": role, "content": text})).collect();
        let body = json!({"model": "smollm2", "messages": messages, "max_tokens": 8, "temperature": 0});
        let answer = http::post_json(serve.data, "/v1/chat/completions", &body)?;
        ensure!(answer.status == 200, "{}", answer.text());
        let answer = answer.json()?;
        Ok(answer["choices"][0]["message"]["content"].as_str().context("no text")?.to_owned())
    };
    let first = ask(&[("user", "Name a colour.")])?;
    ask(&[("user", "Name a fish.")])?;
    ask(&[("user", "Name a colour."), ("assistant", &first), ("user", "Another one.")])?;
    serve.wait_until("the controller knows of three turns", |running| {
        Ok(running.admin_get("snapshot")?["models"]["smollm2"]["demand"]["turns_total"] == 3)
    })?;
    let snapshot = serve.admin_get("snapshot")?;
    let turns = snapshot["models"]["smollm2"]["demand"]["turns"].as_array().cloned().unwrap_or_default();
    let session = |at: usize| turns[at]["session"].as_u64();
    ensure!(session(0) == session(2) && session(0) != session(1), "{turns:?}");
    Ok(())
}
