//! Builds the kernel programs and checks the committed object against their source.
//!
//! A plain `cargo build` embeds the committed `ebpf/probes.bpf.o` and needs only stable Rust. Building the
//! object needs a compiler that has `core` for the BPF target: a nightly with rust-src builds it itself,
//! Debian's `rustc-web` has it ready. Either needs bpf-linker, made for the compiler's own LLVM.

use crate::shell::{command, have, is_root, quiet, run, stdout, step};
use crate::{layout, shell};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "bpfel-unknown-none";
const LINKER_VERSION: &str = "0.13.0";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_PACKAGES: [&str; 2] = ["rustc-web", "libstd-rust-web-dev-bpf"];
/// Stands in the object for the checkout's folder, so that every checkout builds the same bytes.
const SOURCE_PREFIX: &str = "/foreshock";

/// A way to compile for the BPF target.
enum Compiler {
    /// rustup's nightly with rust-src.
    Nightly,
    /// Debian's rustc with a prebuilt `core`.
    Debian,
}

/// A compiler and its linker.
struct Toolchain {
    compiler: Compiler,
    linker_folder: PathBuf,
    /// What is recorded beside the object.
    description: String,
}

/// `cargo xtask probes build`: builds the object and records the toolchain beside it.
pub fn build() -> Result<()> {
    let toolchain = find_toolchain()?;
    let built = compile(&toolchain)?;
    fs::copy(&built, object()).with_context(|| format!("cannot write {}", object().display()))?;
    fs::write(record_file(), record(&toolchain, &sha256(&built)?))
        .with_context(|| format!("cannot write {}", record_file().display()))?;
    println!("wrote {} and {}", object().display(), record_file().display());
    Ok(())
}

/// `cargo xtask probes check`: the committed object is what the source builds. With the recorded toolchain
/// the bytes must be the same; with another one the rebuilt object must pass this kernel's verifier.
pub fn check() -> Result<()> {
    let recorded = fs::read_to_string(record_file())
        .with_context(|| format!("{} is missing; run `cargo xtask probes build`", record_file().display()))?;
    let committed = sha256(&object())?;
    ensure!(
        recorded.contains(&format!("sha256: {committed}")),
        "ebpf/probes.bpf.o is not the object that ebpf/probes.toolchain.txt tells of; run `cargo xtask probes build`"
    );
    let toolchain = find_toolchain()?;
    let built = compile(&toolchain)?;
    let hash = sha256(&built)?;
    if recorded == record(&toolchain, &committed) {
        ensure!(
            hash == committed,
            "ebpf/probes.bpf.o is out of date: its source builds {hash}, committed is {committed}; \
             run `cargo xtask probes build` and commit the result"
        );
        println!("probes: the committed object is what its source builds ({committed})");
        return Ok(());
    }
    println!("probes: the toolchain here is not the recorded one, so the rebuilt object is loaded instead");
    println!("  here:\n{}  recorded:\n{recorded}", record(&toolchain, &hash));
    verify(&built)
}

fn object() -> PathBuf {
    layout::root().join("ebpf/probes.bpf.o")
}

fn record_file() -> PathBuf {
    layout::root().join("ebpf/probes.toolchain.txt")
}

fn record(toolchain: &Toolchain, sha256: &str) -> String {
    format!("{}sha256: {sha256}\n", toolchain.description)
}

fn sha256(path: &Path) -> Result<String> {
    let text = stdout(command("sha256sum", &[]).arg(path))?;
    text.split_whitespace().next().map(str::to_owned).context("sha256sum printed nothing")
}

/// Loads the object and attaches every probe.
fn verify(object: &Path) -> Result<()> {
    let mut cargo = shell::cargo(&["run", "--release", "--quiet", "-p", "controller-witness", "--example", "verify"]);
    run(cargo.arg("--").arg(object)).context("this kernel does not take the rebuilt probes (loading them needs root)")
}

fn find_toolchain() -> Result<Toolchain> {
    let compiler = find_compiler()?;
    let rustc_version = stdout(&mut rustc(&compiler, &["-vV"]))?;
    let first = rustc_version.lines().next().unwrap_or_default();
    let field = |name: &str| rustc_version.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let llvm = field("LLVM version:").context("rustc does not tell its LLVM version")?;
    let llvm_major = llvm.split('.').next().unwrap_or_default();
    let linker_folder = find_linker(&compiler, llvm_major)?;
    let linker_version = stdout(command(linker_folder.join("bpf-linker"), &["--version"]).env_remove("RUST_LOG"))?;
    let description = format!("rustc: {first}\nllvm: {llvm}\nlinker: {}\n", linker_version.trim());
    Ok(Toolchain { compiler, linker_folder, description })
}

fn rustc(compiler: &Compiler, args: &[&str]) -> Command {
    match compiler {
        Compiler::Nightly => {
            let mut rustup = command("rustup", &["run", "nightly", "rustc"]);
            rustup.args(args);
            rustup
        }
        Compiler::Debian => command(DEBIAN_RUSTC, args),
    }
}

fn find_compiler() -> Result<Compiler> {
    if have("rustup")
        && let Ok(sysroot) = stdout(&mut rustc(&Compiler::Nightly, &["--print", "sysroot"]))
        && Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir()
    {
        return Ok(Compiler::Nightly);
    }
    if debian_has_target() {
        return Ok(Compiler::Debian);
    }
    let packages = DEBIAN_PACKAGES.join(" ");
    let advice = format!(
        "no compiler for {TARGET}: install a nightly (`rustup toolchain install nightly --component rust-src`), \
         or on Debian, as root: apt-get install --no-install-recommends {packages}"
    );
    if !have("apt-get") || !is_root() {
        bail!(advice);
    }
    step(&format!("install {packages}"), || {
        let apt = |args: &[&str]| quiet(command("apt-get", args).env("DEBIAN_FRONTEND", "noninteractive"));
        apt(&["update", "-qq"])?;
        apt(&[&["install", "-y", "-qq", "--no-install-recommends"], &DEBIAN_PACKAGES[..]].concat()).map(drop)
    })
    .context(advice.clone())?;
    ensure!(debian_has_target(), advice);
    Ok(Compiler::Debian)
}

fn debian_has_target() -> bool {
    let folder = stdout(&mut rustc(&Compiler::Debian, &["--print", "target-libdir", "--target", TARGET]));
    folder.is_ok_and(|folder| Path::new(folder.trim()).is_dir())
}

/// Folder of bpf-linker. Without one it is built into target/tools, for the compiler's LLVM.
fn find_linker(compiler: &Compiler, llvm_major: &str) -> Result<PathBuf> {
    if matches!(compiler, Compiler::Nightly)
        && let Some(folder) = on_path("bpf-linker")
    {
        return Ok(folder);
    }
    let tools = layout::target().join("tools");
    let linker = tools.join("bin/bpf-linker");
    let wanted = format!("bpf-linker {LINKER_VERSION}");
    let version = linker.is_file().then(|| stdout(&mut command(&linker, &["--version"]))).and_then(Result::ok);
    if version.is_some_and(|version| version.trim() == wanted) {
        return Ok(tools.join("bin"));
    }
    step(&format!("build {wanted} (some minutes)"), || build_linker(compiler, llvm_major, &tools))
        .with_context(|| format!("no bpf-linker: `cargo install bpf-linker --version {LINKER_VERSION}` by hand"))?;
    Ok(tools.join("bin"))
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).find(|folder| folder.join(program).is_file())
}

fn build_linker(compiler: &Compiler, llvm_major: &str, tools: &Path) -> Result<()> {
    let prefix = tools.join("llvm");
    link_llvm(compiler, llvm_major, &prefix)?;
    let mut cargo = shell::cargo(&["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--force"]);
    cargo.args(["--no-default-features", "--features", &format!("llvm-{llvm_major}"), "--root"]).arg(tools);
    cargo.env("LLVM_PREFIX", &prefix).env("CARGO_TARGET_DIR", tools.join("build"));
    cargo.env("CARGO_PROFILE_RELEASE_DEBUG", "0").env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    quiet(&mut cargo)?;
    // Half a gigabyte that nobody needs again.
    fs::remove_dir_all(tools.join("build")).context("cannot clear target/tools/build")
}

/// The linker looks for `libLLVM.so` below a prefix, where distributions have it under a versioned name.
fn link_llvm(compiler: &Compiler, llvm_major: &str, prefix: &Path) -> Result<()> {
    let sysroot = stdout(&mut rustc(compiler, &["--print", "sysroot"]))?;
    let sysroot_lib = Path::new(sysroot.trim()).join("lib");
    let folders = [
        PathBuf::from(format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH)),
        PathBuf::from("/usr/lib64"),
        PathBuf::from("/usr/lib"),
        sysroot_lib,
    ];
    let stem = format!("libLLVM.so.{llvm_major}.");
    let library = folders
        .iter()
        .filter_map(|folder| fs::read_dir(folder).ok())
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&stem)))
        .min()
        .with_context(|| format!("no {stem}* for the linker to be built with; install libllvm{llvm_major}"))?;
    shell::make_folder(&prefix.join("lib"))?;
    let name = library.file_name().context("the library has no name")?;
    for link in [prefix.join("lib/libLLVM.so"), prefix.join("lib").join(name)] {
        let _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(&library, &link).with_context(|| format!("cannot link {}", link.display()))?;
    }
    Ok(())
}

/// Compiles into target/probes and returns the object.
fn compile(toolchain: &Toolchain) -> Result<PathBuf> {
    let root = layout::root();
    let target = layout::target().join("probes");
    let mut cargo = match toolchain.compiler {
        Compiler::Nightly => {
            let mut rustup = command("rustup", &["run", "nightly", "cargo"]);
            rustup.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN");
            rustup
        }
        Compiler::Debian => {
            let mut cargo = shell::cargo(&[]);
            // The BPF target and inline assembly for it are unstable, on whatever compiler.
            cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
    };
    cargo.args(["build", "--release", "--locked", "--quiet", "--target", TARGET]);
    if matches!(toolchain.compiler, Compiler::Nightly) {
        cargo.args(["-Z", "build-std=core"]);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(toolchain.linker_folder.clone()).chain(std::env::split_paths(&path));
    cargo.current_dir(root.join("ebpf/probes")).env("CARGO_TARGET_DIR", &target);
    cargo.env("PATH", std::env::join_paths(folders)?).env("CARGO_ENCODED_RUSTFLAGS", flags(&root).join("\x1f"));
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_INCREMENTAL");
    step("compile the probes", || run(&mut cargo))?;
    Ok(target.join(TARGET).join("release/probes"))
}

fn flags(root: &Path) -> Vec<String> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let registry = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    vec![
        format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH),
        // Type information for the kernel (BTF) is made from debug information.
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        format!("--remap-path-prefix={}={SOURCE_PREFIX}", root.display()),
        format!("--remap-path-prefix={}=/cargo", registry.display()),
    ]
}
