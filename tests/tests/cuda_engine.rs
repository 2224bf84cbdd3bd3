//! An engine on a GPU, which is emulated: the product itself finds the driver, answers over HTTP, and says clearly what is
//! wrong where there is none or it has too little memory.

use anyhow::{Context, Result, ensure};
use blackbox::{http, serve};
use serde_json::json;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// An engine on the emulated GPU, with more of its command line and environment.
fn engine(port: u16, args: &[&str], environment: &[(&str, &str)]) -> Result<Command> {
    let driver: PathBuf = engine_cuda_emulator::driver_folder()?;
    let mut command = Command::new(serve::foreshock_binary()?);
    command.args(["engine", "--kv-bytes", "16777216", "--port", &port.to_string()]);
    command.arg("--model").arg(serve::demo_model()?).args(args);
    command.env("LD_LIBRARY_PATH", driver).envs(environment.iter().copied());
    Ok(command)
}

/// How it ended that cannot start.
fn refused(args: &[&str], environment: &[(&str, &str)]) -> Result<Output> {
    Ok(engine(0, args, environment)?.output()?)
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_engine_on_a_gpu_answers_as_the_reference_does() -> Result<()> {
    let port = serve::free_port()?;
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let child = engine(port, &["--device", "cuda", "--name", "gpu"], &[])?
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut running = Running(child);
    let began = Instant::now();
    while http::get(addr, "/readyz").map_or(true, |answer| answer.status != 200) {
        ensure!(began.elapsed() < Duration::from_secs(120), "not ready");
        ensure!(running.0.try_wait()?.is_none(), "it ended");
        std::thread::sleep(Duration::from_millis(50));
    }
    let body = json!({"model": "gpu", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0});
    let answer = http::post_json(addr, "/v1/completions", &body)?;
    ensure!(answer.status == 200, "{}", answer.text());
    let text = answer.json()?["choices"][0]["text"].as_str().context("no text")?.to_owned();
    ensure!(text == " Paris.\n\n", "{text:?}");
    Ok(())
}

#[test]
fn what_a_gpu_cannot_do_is_said() -> Result<()> {
    let check = |args: &[&str], environment: &[(&str, &str)], expected: &str| -> Result<()> {
        let output = refused(args, environment)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(2) && said.contains(expected), "{:?}: {said}", output.status);
        Ok(())
    };
    check(&["--device", "cuda:7"], &[], "no CUDA device 7")?;
    check(&["--device", "cuda"], &[("FORESHOCK_EMULATOR_MEMORY", "30000000")], "out of device memory")?;
    check(&["--device", "tpu"], &[], "expected cpu, cuda or cuda:N")?;
    check(&["--device", "cuda", "--adapter", "a=/nowhere"], &[], "adapters are served on the CPU alone")
}
