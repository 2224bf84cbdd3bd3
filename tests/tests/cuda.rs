//! CUDA probes on this kernel, with a driver library that the test compiles: exact counts, of the watched process
//! alone, while it is watched. Needs root; without, it says so and is skipped. No real CUDA was at hand.

use anyhow::{Context, Result, ensure};
use blackbox::{Foreshock, stream};
use controller_witness::{CudaCounters, CudaError, Witness, WitnessOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running CUDA program.
struct Program {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Program {
    fn start(folder: &Path) -> Result<Self> {
        let mut child = Command::new(folder.join("program"))
            .env("LD_LIBRARY_PATH", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().context("stdin")?;
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let mut program = Self { child, stdin, stdout };
        program.told("ready")?;
        Ok(program)
    }

    fn told(&mut self, what: &str) -> Result<()> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        ensure!(line.trim() == what, "{line}");
        Ok(())
    }

    /// One round of calls, from two threads.
    fn round(&mut self) -> Result<()> {
        self.stdin.write_all(b"go\n")?;
        self.stdin.flush()?;
        self.told("done")
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn cc(folder: &Path, arguments: &[&str]) -> Result<()> {
    ensure!(Command::new("cc").args(arguments).current_dir(folder).status()?.success(), "cc {arguments:?}");
    Ok(())
}

fn source(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda").join(name).display().to_string()
}

fn compile(folder: &Path) -> Result<()> {
    cc(folder, &["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", "-o", "libcuda.so.1", &source("libcuda.c")])?;
    cc(folder, &["-O1", "-o", "program", &source("program.c"), "libcuda.so.1", "-lpthread"])
}

/// What `rounds` of two threads each call.
fn calls(rounds: u64) -> CudaCounters {
    let threads = 2 * rounds;
    CudaCounters {
        launches: 50 * threads,
        graph_launches: 7 * threads,
        copies: 5 * threads,
        copied_bytes: (3 * 1000 + 2 * (6 << 30)) * threads,
        allocations: 5 * threads,
        allocated_bytes: 5 * (5 << 30) * threads,
        frees: 4 * threads,
        contexts: threads,
    }
}

#[tokio::test]
async fn calls_of_the_watched_process_are_counted_exactly() -> Result<()> {
    let witness = Witness::attach(WitnessOptions::default())?;
    if witness.probes().iter().any(|probe| probe.reason.starts_with("missing CAP_")) {
        println!("skipped: {}", witness.summary());
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    compile(folder.path())?;
    let (mut one, mut other) = (Program::start(folder.path())?, Program::start(folder.path())?);
    one.round()?;
    let watch = witness.watch_cuda(one.pid())?;
    ensure!(watch.functions.contains(&"cuGraphLaunch"), "{watch:?}");
    ensure!(watch.missing.contains(&"cuLaunchKernelEx") && watch.missing.contains(&"cuMemAllocAsync"), "{watch:?}");
    ensure!(witness.cuda_counters(one.pid()) == Some(CudaCounters::default()), "nothing before it was watched");
    one.round()?;
    other.round()?;
    one.round()?;
    let check = |found: Option<CudaCounters>, rounds| {
        ensure!(found == Some(calls(rounds)), "{found:?}, not {rounds} rounds: {:?}", calls(rounds));
        Ok(())
    };
    check(witness.cuda_counters(one.pid()), 2)?;
    // Both at once, each for itself; watching again changes nothing.
    witness.watch_cuda(other.pid())?;
    ensure!(witness.watch_cuda(one.pid())? == watch, "the same watch");
    other.round()?;
    one.round()?;
    check(witness.unwatch_cuda(one.pid()), 3)?;
    one.round()?;
    ensure!(witness.unwatch_cuda(one.pid()).is_none() && witness.cuda_counters(one.pid()).is_none(), "it is off");
    other.round()?;
    check(witness.unwatch_cuda(other.pid()), 2)?;
    // On again, from zero.
    witness.watch_cuda(one.pid())?;
    one.round()?;
    check(witness.unwatch_cuda(one.pid()), 1)?;
    let without = witness.watch_cuda(std::process::id());
    ensure!(matches!(without, Err(CudaError::NoLibrary(_))), "{without:?}");
    Ok(())
}

#[test]
fn serve_counts_the_calls_of_its_engines_in_windows() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let library = folder.path().join("libcuda.so.1");
    let path = library.display().to_string();
    cc(folder.path(), &["-shared", "-fPIC", "-O1", "-DBUSY", "-o", &path, &source("libcuda.c"), "-lpthread"])?;
    // Loaded into everything that serve starts: its engines become CUDA processes.
    let foreshock =
        Foreshock::start_with(folder.path(), &["--cuda-probes", "--idle-seconds", "60"], &[("LD_PRELOAD", &library)])?;
    if foreshock.admin_get("probes")?["summary"].as_str().is_some_and(|summary| summary.contains("missing CAP_")) {
        println!("skipped: no permission for probes");
        return Ok(());
    }
    foreshock.add_model("alpha")?;
    let body = serde_json::json!({"model": "alpha", "prompt": "Once", "max_tokens": 2, "stream": true});
    stream::post(foreshock.data, "/v1/completions", &body)?;
    foreshock.wait_until("launches in a window", |foreshock| {
        let calls = ["model=\"alpha\"", "call=\"launch\""];
        Ok(foreshock.metric_sum("foreshock_cuda_calls_per_second", &calls)? > 1.0)
    })?;
    ensure!(foreshock.metric_sum("foreshock_cuda_calls_per_second", &["call=\"graph_launch\""])? == 0.0, "no graphs");
    let status = foreshock.terminate()?;
    ensure!(status.success(), "{status}");
    Ok(())
}
