//! How true the kernel witness is: for our engine and for an unmodified llama-server, each under 1, 4 and 16
//! streaming clients, its counts are laid beside what was sent, and each of its times between two clocks that know
//! nothing of it: the server's own just before its write (a preloaded library notes it) and the client kernel's
//! at receipt (SO_TIMESTAMPNS).

mod books;

use super::engine::process::{Engine, NAME, PLAIN};
use super::report::{Report, Row, Samples, Target, quantile};
use super::{llama, load};
use crate::layout;
use crate::shell::{cargo, command, make_folder, quiet, stdout, step};
use anyhow::{Context, Result, bail, ensure};
use books::{Client, Counts, Record, Writes};
use serde::de::DeserializeOwned;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Instant;

const CLIENTS: [usize; 3] = [1, 4, 16];
/// Requests in all at each number of clients, and output tokens of each.
const REQUESTS: usize = 96;
const TOKENS: usize = 24;
/// A request is noted at both ends within this of its time on the wire, or something is wrong.
const TARGET_P99_MS: f64 = 1.0;

/// Both servers in turn.
pub fn measure() -> Result<Report> {
    llama::install()?;
    step("building the watcher", || quiet(&mut cargo(&[&["build"], WATCHER].concat())).map(drop))?;
    let library = step("building the library that notes writes", build_library)?;
    let mut report = Report::new("witness");
    for server in ["ours", "llama-server"] {
        let book = layout::target().join("bench").join(format!("writes-{server}"));
        let _ = std::fs::remove_file(&book);
        let variables: [(&str, &Path); 2] = [("LD_PRELOAD", &library), ("WRITES_FILE", &book)];
        let model = layout::demo_model();
        if server == "ours" {
            let engine = Engine::start_with(&model, PLAIN, &variables)?;
            watch_levels(server, engine.addr, NAME, &book, &mut report)?;
        } else {
            let mut peer = llama::spawn_with(&model, &["--ctx-size", "8192", "--parallel", "16"], &variables)?;
            peer.wait_for_token(Instant::now(), 4)?;
            watch_levels(server, peer.addr, "any", &book, &mut report)?;
        }
    }
    Ok(report)
}

const WATCHER: &[&str] = &["--release", "--quiet", "--package", "controller-witness", "--example", "records"];

fn build_library() -> Result<PathBuf> {
    let source = layout::root().join("xtask/src/bench/witness/writes.c");
    let folder = layout::target().join("bench");
    make_folder(&folder)?;
    let library = folder.join("writes.so");
    let arguments = ["-O2", "-shared", "-fPIC", "-o", &library.to_string_lossy(), &source.to_string_lossy(), "-ldl"];
    quiet(&mut command("cc", &arguments))?;
    Ok(library)
}

fn watch_levels(server: &str, addr: SocketAddr, model: &str, book: &Path, report: &mut Report) -> Result<()> {
    load::ttft_ms(addr, model, 4).context("waking the server")?;
    for clients in CLIENTS {
        eprintln!("    {server}: {clients} clients");
        let watcher = Watcher::start(addr.port())?;
        let seen = run_clients(addr, model, clients)?;
        let (records, counts) = watcher.stop()?;
        let writes = Writes::read(book)?;
        add_rows(&format!("{server}, {clients} clients"), &seen, &records, &counts, &writes, report)?;
    }
    Ok(())
}

fn run_clients(addr: SocketAddr, model: &str, clients: usize) -> Result<Vec<Client>> {
    let script = layout::root().join("xtask/src/bench/witness/clients.py");
    let (each, tokens) = ((REQUESTS / clients).to_string(), TOKENS.to_string());
    let arguments = [&*script.to_string_lossy(), &addr.port().to_string(), model, &clients.to_string(), &each, &tokens];
    let printed = stdout(&mut command("python3", &arguments))?;
    let seen: Vec<Client> = printed.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(seen.len() == REQUESTS && seen.iter().all(|client| client.status == 200), "{} answers", seen.len());
    Ok(seen)
}

/// The example program that prints kernel records.
struct Watcher {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Watcher {
    fn start(port: u16) -> Result<Self> {
        let program = layout::target().join("release/examples/records");
        let mut watcher = command(program, &[&port.to_string()]);
        let mut child = watcher.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("starting the watcher")?;
        let mut lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        ensure!(first.contains("watching"), "the kernel witness does not watch: it needs root ({first})");
        Ok(Self { child, lines })
    }

    /// What it saw. It prints the last lines when its input ends.
    fn stop(mut self) -> Result<(Vec<Record>, Counts)> {
        drop(self.child.stdin.take());
        let lines: Vec<String> = self.lines.collect::<Result<_, _>>()?;
        ensure!(self.child.wait()?.success(), "the watcher failed");
        let (last, records) = lines.split_last().context("the watcher printed nothing")?;
        Ok((records.iter().map(|line| parse(line)).collect::<Result<_>>()?, parse(last)?))
    }
}

fn parse<T: DeserializeOwned>(line: &str) -> Result<T> {
    serde_json::from_str(line).with_context(|| format!("the watcher printed {line}"))
}

/// Distances in ms of the kernel's times from the server's write and from the client's receipt.
#[derive(Default)]
struct Distances {
    from_write: Vec<f64>,
    to_receipt: Vec<f64>,
    outside: usize,
}

impl Distances {
    fn add(&mut self, kernel_ns: u64, write_ns: u64, receipt_ns: u64) {
        let ms = |from: u64, to: u64| (to as f64 - from as f64) / 1e6;
        self.from_write.push(ms(write_ns, kernel_ns));
        self.to_receipt.push(ms(kernel_ns, receipt_ns));
        self.outside += usize::from(kernel_ns < write_ns || kernel_ns > receipt_ns);
    }
}

fn add_rows(
    case: &str,
    seen: &[Client],
    records: &[Record],
    counts: &Counts,
    writes: &Writes,
    report: &mut Report,
) -> Result<()> {
    let (mut first_byte, mut first_token, mut last_byte) = Default::default();
    let mut token_at_byte = 0;
    for client in seen {
        let Some(record) = client.record(records) else {
            bail!("{case}: no kernel record of the request from port {}", client.port)
        };
        let mine = writes.to(client.port, record.start_ns);
        let add = |distances: &mut Distances, kernel_ns: u64, end: u64| -> Result<()> {
            let write_ns = mine.of_byte(end).with_context(|| format!("{case}: no write of byte {end}"))?;
            let receipt_ns = client.received(end).with_context(|| format!("{case}: byte {end} was not received"))?;
            distances.add(kernel_ns, write_ns, receipt_ns);
            Ok(())
        };
        add(&mut first_byte, record.first_byte_ns, 1)?;
        add(&mut first_token, record.first_token_ns, client.first_token_end)?;
        add(&mut last_byte, record.last_byte_ns, client.bytes)?;
        let apart = mine.of_byte(1) != mine.of_byte(client.first_token_end);
        token_at_byte += usize::from(apart && record.first_token_ns == record.first_byte_ns);
    }
    for (what, distances) in [("first byte", &first_byte), ("first token", &first_token), ("last byte", &last_byte)] {
        let samples = Samples { ours: distances.from_write.clone(), peer: distances.to_receipt.clone() };
        for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
            let row = format!("{case}: {what} {name}: after the write | before receipt");
            report.rows.push(Row::of_quantile(row, "ms", share, &samples));
        }
        let name = |what: &str, of: &str| format!("{case}: {what} {of}");
        let p99 = quantile(&distances.from_write, 0.99);
        report.targets.push(Target::at_most(name(what, "p99 after the write, ms"), p99, TARGET_P99_MS));
        report.targets.push(Target::at_most(name(what, "times outside"), distances.outside as f64, 0.0));
    }
    let miscounted = (counts.counts.requests as f64 - seen.len() as f64).abs();
    report.targets.push(Target::at_most(format!("{case}: requests miscounted"), miscounted, 0.0));
    report.targets.push(Target::at_most(
        format!("{case}: first byte taken for first token"),
        token_at_byte as f64,
        0.0,
    ));
    report.targets.push(Target::at_most(format!("{case}: events lost"), counts.events_lost as f64, 0.0));
    Ok(())
}
