//! Builds the emulated driver with g++: once for each state of its sources, of the kernels and of the compiler.
//!
//! Objects are kept by what they are made of, so a changed kernel compiles one file.

use crate::{Error, scan};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

const COMPILER: &str = "g++";
/// Products and sums are rounded apart, so that a loop gives the same bits however it was vectorised.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-march=native",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wno-psabi",
    "-DFORESHOCK_EMULATOR",
];
/// Kernels alone: an access that is not aligned to its type stops, as it does on a GPU and not on this processor.
const KERNEL_FLAGS: &[&str] =
    &["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error", "-include", "emulator.hpp"];
/// Names under which the libraries are known once they are loaded: the first ones that cudarc tries, so that a driver
/// which this machine may have is never taken for ours.
const DRIVER_NAME: &str = "libcuda.so";
const BLAS_NAME: &str = "libcublasLt.so";

/// Files of the built libraries.
pub struct Libraries {
    pub driver: PathBuf,
    pub blas: PathBuf,
}

/// One file to compile.
struct Unit {
    flags: &'static [&'static str],
    /// As people know it.
    original: PathBuf,
    /// As it is compiled.
    source: PathBuf,
    object: PathBuf,
}

/// This package's folder.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Builds what is not there yet.
pub fn build(kernels: &Path) -> Result<Libraries, Error> {
    let target = folder().join("../../../target/emulator");
    fs::create_dir_all(&target).map_err(|problem| file_error(&target, problem))?;
    // Test programs run at the same time; the first one builds, the others wait for it.
    let lock_path = target.join("lock");
    let lock = File::create(&lock_path).map_err(|problem| file_error(&lock_path, problem))?;
    lock.lock().map_err(|problem| file_error(&lock_path, problem))?;

    let base = base_hash()?;
    let inside = [base.clone(), texts(&folder().join("runtime"))?.concat()];
    let runtime = units_of_runtime(&hash_of(inside.iter()), &target)?;
    let (device, blas) = runtime.into_iter().partition::<Vec<_>, _>(|unit| !unit.original.ends_with("cublaslt.cpp"));
    let units: Vec<Unit> = device.into_iter().chain(units_of_kernels(kernels, &base, &target)?).collect();
    compile(&units)?;
    compile(&blas)?;
    let libraries = target.join(hash_of(units.iter().chain(&blas).map(|unit| unit.object.to_string_lossy())));
    fs::create_dir_all(&libraries).map_err(|problem| file_error(&libraries, problem))?;
    let driver = libraries.join(DRIVER_NAME);
    link(&driver, DRIVER_NAME, &units, None)?;
    let blas_library = libraries.join(BLAS_NAME);
    link(&blas_library, BLAS_NAME, &blas, Some(&driver))?;
    Ok(Libraries { driver, blas: blas_library })
}

fn file_error(path: &Path, problem: std::io::Error) -> Error {
    Error::File { path: path.to_owned(), problem }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|problem| file_error(path, problem))
}

/// Files of a folder with one of some endings, sorted.
fn files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(folder).map_err(|problem| file_error(folder, problem))?;
    let has_ending = |path: &PathBuf| path.extension().is_some_and(|ending| endings.iter().any(|one| *one == ending));
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(has_ending).collect();
    paths.sort();
    Ok(paths)
}

fn hash_of(parts: impl Iterator<Item = impl AsRef<str>>) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.as_ref().len() as u64).to_le_bytes());
        hasher.update(part.as_ref().as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

/// Texts of the headers in a folder.
fn texts(folder: &Path) -> Result<Vec<String>, Error> {
    files(folder, &["hpp"])?.iter().map(|path| read(path)).collect()
}

/// Of what every object depends on: compiler, processor, flags, headers that kernels see.
fn base_hash() -> Result<String, Error> {
    let version = Command::new(COMPILER)
        .arg("--version")
        .output()
        .map_err(|problem| Error::Compiler { compiler: COMPILER, problem })?;
    let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let features = processor.lines().find(|line| line.starts_with("flags")).unwrap_or_default().to_owned();
    let mut parts =
        vec![String::from_utf8_lossy(&version.stdout).into_owned(), features, FLAGS.join(" "), KERNEL_FLAGS.join(" ")];
    parts.extend(texts(&folder().join("include"))?);
    parts.extend(texts(&folder().join("include/emulator"))?);
    Ok(hash_of(parts.iter()))
}

fn units_of_runtime(base: &str, target: &Path) -> Result<Vec<Unit>, Error> {
    let unit = |path: PathBuf| {
        let object = target.join(format!("{}.o", hash_of([base, &read(&path)?].iter())));
        Ok(Unit { flags: &[], original: path.clone(), source: path, object })
    };
    files(&folder().join("runtime"), &["cpp"])?.into_iter().map(unit).collect()
}

/// Copies the kernels, and the headers beside them, in the form that g++ reads.
fn units_of_kernels(kernels: &Path, base: &str, target: &Path) -> Result<Vec<Unit>, Error> {
    let rewrite = |path: &PathBuf| {
        let text = read(path)?;
        let problem = |(at, problem): scan::Problem| Error::Source {
            path: path.clone(),
            line: text[..at].matches('\n').count() + 1,
            problem,
        };
        let mut out = format!("#line 1 \"{}\"\n{}\n", path.display(), scan::for_host(&text).map_err(problem)?);
        for entry in scan::entries(&text).map_err(problem)? {
            out.push_str(&format!("EMULATOR_KERNEL({}, ({}))\n", entry.name, entry.most_threads));
        }
        Ok((path.clone(), out))
    };
    let headers = files(kernels, &["cuh", "h", "hpp"])?.iter().map(rewrite).collect::<Result<Vec<_>, Error>>()?;
    let sources = files(kernels, &["cu"])?.iter().map(rewrite).collect::<Result<Vec<_>, Error>>()?;
    let common = hash_of(std::iter::once(base).chain(headers.iter().map(|(_, text)| text.as_str())));
    let copies = target.join(format!("sources-{common}"));
    fs::create_dir_all(&copies).map_err(|problem| file_error(&copies, problem))?;
    for (path, text) in headers.iter().chain(&sources) {
        let copy = copies.join(path.file_name().unwrap_or_default());
        fs::write(&copy, text).map_err(|problem| file_error(&copy, problem))?;
    }
    let unit = |(path, text): (PathBuf, String)| Unit {
        flags: KERNEL_FLAGS,
        source: copies.join(path.file_name().unwrap_or_default()),
        object: target.join(format!("{}.o", hash_of([&common, &text].iter()))),
        original: path,
    };
    Ok(sources.into_iter().map(unit).collect())
}

/// Compiles what has no object yet, on all cores.
fn compile(units: &[Unit]) -> Result<(), Error> {
    let missing = Mutex::new(units.iter().filter(|unit| !unit.object.exists()).collect::<Vec<_>>());
    let next = || missing.lock().ok()?.pop();
    let work = || {
        while let Some(unit) = next() {
            compile_one(unit)?;
        }
        Ok(())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn compile_one(unit: &Unit) -> Result<(), Error> {
    let part = unit.object.with_extension("part");
    let mut compiler = Command::new(COMPILER);
    compiler.args(FLAGS).args(unit.flags).arg("-I").arg(folder().join("include")).args(["-x", "c++", "-c"]);
    run(compiler.arg(&unit.source).arg("-o").arg(&part), &unit.original)?;
    fs::rename(&part, &unit.object).map_err(|problem| file_error(&unit.object, problem))
}

fn link(library: &Path, name: &str, units: &[Unit], against: Option<&Path>) -> Result<(), Error> {
    if library.exists() {
        return Ok(());
    }
    let part = library.with_extension("part");
    let mut linker = Command::new(COMPILER);
    linker.args(["-shared", "-Wl,-z,defs", &format!("-Wl,-soname,{name}")]);
    linker.args(units.iter().map(|unit| &unit.object)).args(against).arg("-o").arg(&part);
    run(&mut linker, library)?;
    fs::rename(&part, library).map_err(|problem| file_error(library, problem))
}

fn run(command: &mut Command, about: &Path) -> Result<(), Error> {
    let output = command.output().map_err(|problem| Error::Compiler { compiler: COMPILER, problem })?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Compile { path: about.to_owned(), output: text })
}
