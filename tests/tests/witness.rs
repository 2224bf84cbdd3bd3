//! The kernel's account of a live Foreshock against the client's own: requests counted exactly, and each first
//! token's time between the server's write and the client's read.

use anyhow::{Context, Result, ensure};
use blackbox::serve::sum_series;
use blackbox::{Foreshock, stream};
use serde_json::{Value, json};

fn request(number: usize) -> Value {
    json!({
        "model": "smollm2", "messages": [{"role": "user", "content": format!("Say {number}.")}], "max_tokens": 6,
        "temperature": 0, "ignore_eos": true, "stream": true,
    })
}

fn probes_attached(foreshock: &Foreshock) -> Result<bool> {
    let probes = foreshock.admin_get("probes")?;
    println!("probes: {probes}");
    Ok(rustix::process::geteuid().is_root() && !probes.to_string().contains("EPERM"))
}

/// Requests at the gateway's port that the kernel saw begin and that the gateway answered, in one scrape.
fn counts(foreshock: &Foreshock) -> Result<(f64, f64)> {
    let text = foreshock.metrics()?;
    let kernel = sum_series(&text, "foreshock_kernel_requests_total", &["port_role=\"gateway\""]);
    Ok((kernel, sum_series(&text, "foreshock_requests_total", &[])))
}

#[test]
fn kernel_counts_and_times_what_the_client_saw() -> Result<()> {
    // A spare process would take the first request before it is held long enough for a comment.
    let foreshock = Foreshock::start(&["--idle-seconds", "60", "--spares", "0"])?;
    foreshock.add_model("smollm2")?;
    if !probes_attached(&foreshock)? {
        println!("skipped: no permission for kernel probes here");
        return Ok(());
    }
    let (kernel_before, answered_before) = counts(&foreshock)?;

    // The first stream meets a model at zero, is held and gets comments: those are not its first token.
    let mut answers = vec![stream::post(foreshock.data, "/v1/chat/completions", &request(0))?];
    ensure!(answers[0].comments > 0, "a held stream got no comment");
    // Then several on one kept-alive connection, and several at once.
    let mut socket = std::net::TcpStream::connect(foreshock.data)?;
    for number in 1..6 {
        answers.push(stream::post_on(&mut socket, "/v1/chat/completions", &request(number), false)?);
    }
    drop(socket);
    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (6..14)
            .map(|number| scope.spawn(move || number))
            .map(|number| number.join().expect("number"))
            .map(|number| {
                let foreshock = &foreshock;
                scope.spawn(move || stream::post(foreshock.data, "/v1/chat/completions", &request(number)))
            })
            .collect();
        for client in clients {
            answers.push(client.join().expect("client panicked")?);
        }
        Ok(())
    })?;
    for answer in &answers {
        answer.complete()?;
    }

    // Our own scrapes are HTTP requests on that port too. Kernel and gateway count them alike, so the differences
    // must be equal, and what the gateway answered on this route is exactly what we sent.
    foreshock.wait_until("kernel and gateway counts agree", |running| {
        let (kernel, answered) = counts(running)?;
        println!("kernel +{}, gateway +{}", kernel - kernel_before, answered - answered_before);
        Ok(kernel - kernel_before == answered - answered_before)
    })?;
    let streams = foreshock.metric_sum("foreshock_arrivals_total", &[])?;
    ensure!(streams == answers.len() as f64, "{streams} arrivals counted, {} sent", answers.len());

    let requests = foreshock.admin_get("requests?limit=1000")?;
    let kernel: Vec<&Value> = requests["kernel"]
        .as_array()
        .context("no kernel records")?
        .iter()
        .filter(|record| record["role"] == "gateway" && record["first_token_ns"].as_u64() > Some(0))
        .collect();
    ensure!(kernel.len() == answers.len(), "{} kernel stream records, {} streams", kernel.len(), answers.len());
    let gateway = requests["gateway"].as_array().context("no gateway records")?;
    times_lie_between(&answers, &kernel, gateway)
}

/// Joins by the client's address and order on its connection, then compares the three clocks' one time line.
fn times_lie_between(answers: &[stream::Streamed], kernel: &[&Value], gateway: &[Value]) -> Result<()> {
    let mut seen_on = std::collections::BTreeMap::<String, u64>::new();
    println!("request  write->kernel us  kernel->read us");
    for (number, answer) in answers.iter().enumerate() {
        let peer = answer.local.context("no local address")?.to_string();
        let order = seen_on.entry(peer.clone()).or_default();
        let record = kernel
            .iter()
            .filter(|record| record["client"] == peer.as_str())
            .find(|record| record["sequence"] == *order)
            .with_context(|| format!("no kernel record of {peer} number {order}"))?;
        let access = gateway
            .iter()
            .filter(|access| access["peer"] == peer.as_str())
            .min_by_key(|access| access["arrived_at_ns"].as_u64().unwrap_or(0).abs_diff(answer.sent_ns))
            .with_context(|| format!("no access record of {peer}"))?;
        *order += 1;
        let (write, first) =
            (access["first_token_write_ns"].as_u64().unwrap_or(0), record["first_token_ns"].as_u64().unwrap_or(0));
        let read = answer.first_text_ns().context("no text")?;
        println!(
            "{number:>7}  {:>16}  {:>15}",
            (first as i64 - write as i64) / 1000,
            (read as i64 - first as i64) / 1000
        );
        ensure!(write > 0 && write <= first, "{peer}: the kernel saw the first token before the server wrote it");
        ensure!(first <= read, "{peer}: the kernel saw the first token after the client read it");
        let start = record["start_ns"].as_u64().unwrap_or(0);
        ensure!(answer.sent_ns <= start && start <= first, "{peer}: request start {start} out of order");
    }
    Ok(())
}
