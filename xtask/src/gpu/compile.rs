//! Compiles every `.cu` file for every architecture, on all cores, and reads what each kernel takes of the hardware.

use super::sources;
use super::toolchain::Toolchain;
use crate::layout;
use crate::shell::{command, make_folder, quiet};
use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Architectures with machine code of their own: Ampere (and what follows it), Hopper, Blackwell.
const ARCHITECTURES: &[&str] = &["sm_80", "sm_90a", "sm_100a"];
/// For all others: the driver compiles this text itself, from compute capability 8.0 on.
const FALLBACK: &str = "compute_80";
/// Of both kinds.
const FLAGS: &[&str] = &["-std=c++17", "-O3", "--ptxas-options=-v", "--Werror", "cross-execution-space-call"];

/// An image that the driver loads.
pub struct Image {
    /// `matmul.sm_90a.cubin`, `matmul.ptx`.
    pub name: String,
    pub bytes: Vec<u8>,
}

/// What a kernel takes on an architecture, as ptxas says.
#[derive(Debug, PartialEq, Eq)]
pub struct Resources {
    pub kernel: String,
    pub arch: String,
    pub registers: u32,
    pub shared_bytes: u32,
    pub spill_bytes: u32,
}

/// All images, sorted by name, and what their kernels take.
pub struct Built {
    pub images: Vec<Image>,
    pub resources: Vec<Resources>,
    /// Of all files that images are made from.
    pub sources_sha256: String,
    pub toolchain: String,
}

/// One call of the compiler.
struct Job {
    source: String,
    arch: &'static str,
    image: String,
    /// Where the image is kept, under a name that holds what it is made of.
    path: PathBuf,
}

impl Job {
    /// What the compiler printed.
    fn log(&self) -> PathBuf {
        self.path.with_extension("log")
    }
}

/// Compiles into target/tools/gpu. Images of the same sources by the same compiler are the same, so they are kept.
pub fn all(toolchain: &Toolchain) -> Result<Built> {
    let files = source_files()?;
    let (kernels, headers): (Vec<_>, Vec<_>) =
        files.iter().partition(|path| path.extension().is_some_and(|ending| ending == "cu"));
    let common = format!("{} {} {FLAGS:?}", toolchain.description, hash_of_files(headers.iter().copied())?);
    let mut jobs = Vec::new();
    for path in kernels {
        jobs.extend(jobs_of(path, &format!("{common} {}", hash_of_files([path])?)));
    }
    make_folder(&folder())?;
    run_jobs(toolchain, &jobs)?;
    let mut built = Built {
        images: Vec::new(),
        resources: Vec::new(),
        sources_sha256: hash_of_files(&files)?,
        toolchain: toolchain.description.clone(),
    };
    for job in &jobs {
        let bytes = fs::read(&job.path).with_context(|| format!("{} was not made", job.image))?;
        built.images.push(Image { name: job.image.clone(), bytes });
        built.resources.extend(parse(&fs::read_to_string(job.log())?, job.arch));
    }
    built.images.sort_by(|a, b| a.name.cmp(&b.name));
    built.resources.sort_by(|a, b| (&a.kernel, &a.arch).cmp(&(&b.kernel, &b.arch)));
    Ok(built)
}

fn source_files() -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(sources()).with_context(|| format!("cannot read {}", sources().display()))?;
    let mut files: Vec<PathBuf> =
        entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// Images of this and of earlier states of the sources.
fn folder() -> PathBuf {
    layout::target().join("tools/gpu/images")
}

fn hash_of_files<'a>(files: impl IntoIterator<Item = &'a PathBuf>) -> Result<String> {
    let mut hasher = Sha256::new();
    for path in files {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        hasher.update(format!("{name} {}\n", bytes.len()));
        hasher.update(bytes);
    }
    Ok(format!("{:x}", hasher.finalize()))
}

pub fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

fn jobs_of(path: &Path, made_of: &str) -> Vec<Job> {
    let source = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let job = |arch: &'static str, image: String| {
        let key = sha256(format!("{made_of} {image}").as_bytes());
        let path = folder().join(format!("{}-{image}", &key[..16]));
        Job { source: source.clone(), arch, image, path }
    };
    let cubins = ARCHITECTURES.iter().map(|arch| job(arch, format!("{stem}.{arch}.cubin")));
    cubins.chain([job(FALLBACK, format!("{stem}.ptx"))]).collect()
}

fn run_jobs(toolchain: &Toolchain, jobs: &[Job]) -> Result<()> {
    let missing = Mutex::new(jobs.iter().filter(|job| !job.path.exists()).collect::<Vec<_>>());
    let next = || missing.lock().ok()?.pop();
    let work = || {
        while let Some(job) = next() {
            run_job(toolchain, job)?;
        }
        anyhow::Ok(())
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Names are given from the sources' folder, so that no path of this machine can get into an image.
fn run_job(toolchain: &Toolchain, job: &Job) -> Result<()> {
    let part = job.path.with_extension("part");
    let kind = if job.arch == FALLBACK { "-ptx" } else { "-cubin" };
    let mut nvcc = command(&toolchain.nvcc, FLAGS);
    nvcc.args([kind, &format!("-arch={}", job.arch), "-o"]).arg(&part).arg(&job.source).current_dir(sources());
    let output = quiet(&mut nvcc).with_context(|| format!("{} does not compile for {}", job.source, job.arch))?;
    fs::write(job.log(), &output.stderr)?;
    fs::rename(&part, &job.path).context("cannot write into target/tools/gpu")
}

/// Compiles one file to text for any card.
pub fn to_ptx(toolchain: &Toolchain, source: &Path, image: &Path) -> Result<()> {
    let arch = format!("-arch={FALLBACK}");
    quiet(command(&toolchain.nvcc, FLAGS).args(["-ptx", &arch, "-o"]).arg(image).arg(source))
        .with_context(|| format!("{} does not compile for {FALLBACK}", source.display()))
        .map(drop)
}

/// Reads what `ptxas -v` prints of each entry.
fn parse(log: &str, arch: &str) -> Vec<Resources> {
    let mut found: Vec<Resources> = Vec::new();
    for line in log.lines() {
        if let Some(rest) = line.split("Compiling entry function '").nth(1) {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            let arch = arch.to_owned();
            found.push(Resources { kernel, arch, registers: 0, shared_bytes: 0, spill_bytes: 0 });
        }
        let Some(last) = found.last_mut() else { continue };
        if line.contains("bytes spill stores") {
            // Of a function that the kernel calls too.
            last.spill_bytes += number_before(line, " bytes spill stores") + number_before(line, " bytes spill loads");
        }
        if line.contains("Used ") {
            last.registers = number_before(line, " registers");
            last.shared_bytes = number_before(line, " bytes smem");
        }
    }
    found
}

/// The number that stands before some words, 0 if they are not there.
fn number_before(line: &str, words: &str) -> u32 {
    let before = line.split_once(words).map_or("", |(before, _)| before);
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_read_from_the_assembler_s_words() {
        let log = "ptxas info    : 0 bytes gmem\nptxas info    : Compiling entry function 'few' for 'sm_90a'\n\
                   ptxas info    : Function properties for few\n    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads\n\
                   ptxas info    : Used 64 registers, used 1 barriers, 128 bytes smem, 432 bytes cmem[0]\n\
                   ptxas info    : Compiling entry function 'many' for 'sm_90a'\n\
                   ptxas info    : Used 255 registers, used 0 barriers\n";
        let one = |kernel: &str, registers, shared_bytes, spill_bytes| Resources {
            kernel: kernel.to_owned(),
            arch: "sm_90a".to_owned(),
            registers,
            shared_bytes,
            spill_bytes,
        };
        assert_eq!(parse(log, "sm_90a"), [one("few", 64, 128, 16), one("many", 255, 0, 0)]);
    }
}
