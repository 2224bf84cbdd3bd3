//! The store, without an engine: how fast a model of 7 GB comes from a cold disk into memory, verified, beside the best of
//! fio's direct reads of the same files; and what it costs to adopt one that is in memory, which is to be the
//! same for a small model and a large one. Beside them, the loaders of others, of the same bytes on the same disk: llama.cpp's
//! and safetensors' in Python. All in turns, because disks of this kind of machine drift.

use super::report::{Report, Row, Samples, Target, median};
use super::{llama, loaders};
use crate::layout;
use crate::shell::{cargo, command, make_folder, run, stdout, step};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::path::{Path, PathBuf};

const ROUNDS: usize = 5;
/// Queue depths that fio tries in each round; its best one counts.
const DEPTHS: [&str; 6] = ["1", "2", "4", "8", "16", "32"];
/// Of fio's best.
const SHARE: f64 = 0.95;
const ADOPT_MS: f64 = 5.0;
/// Of the better of the other loaders.
const TIMES: f64 = 2.0;

/// What the example says of a load.
#[derive(Deserialize)]
struct Loaded {
    ms: f64,
    read_bytes: u64,
    adopted_bytes: u64,
    io_uring: bool,
    direct: bool,
}

/// A model in a store of its own.
struct Model {
    name: &'static str,
    store: PathBuf,
    segments: PathBuf,
}

/// Both models, in turns.
pub fn measure() -> Result<Report> {
    crate::setup::for_bench_load()?;
    llama::install()?;
    loaders::install()?;
    run(&mut cargo(&["build", "--release", "--quiet", "-p", "engine-store", "--example", "cold"]))?;
    let folder = layout::target().join("bench/load");
    make_folder(&folder)?;
    let checkpoint = folder.join("mistral-7b-q8_0.gguf");
    if !checkpoint.exists() {
        step("writing a checkpoint of 7.7 GB with random weights", || example(&["make", &text(&checkpoint)]))?;
    }
    let safetensors = folder.join("mistral-7b-part.safetensors");
    if !safetensors.exists() {
        step("writing 2.5 GB of it as safetensors", || example(&["make-safetensors", &text(&safetensors)]))?;
    }
    let small = ingested("smollm2", &layout::demo_model(), &folder)?;
    let large = ingested("mistral-7b", &checkpoint, &folder)?;
    let mut report = Report::new("load");
    let outcome = measure_all(&small, &large, [&checkpoint, &safetensors], &mut report);
    // Seven gigabytes of memory are given back whatever happened.
    for model in [&small, &large] {
        let _ = std::fs::remove_dir_all(&model.segments);
    }
    outcome.map(|()| report)
}

fn measure_all(small: &Model, large: &Model, files: [&Path; 2], report: &mut Report) -> Result<()> {
    let (mut speed, mut speed_without) = (Samples::default(), Samples::default());
    let (mut llama, mut python) = (Samples::default(), Samples::default());
    let mut adopt = Samples::default();
    for round in 1..=ROUNDS {
        eprintln!("    round {round} of {ROUNDS}");
        load(small, &["fresh"])?;
        let loaded = load(large, &["fresh"])?;
        ensure!(loaded.adopted_bytes == 0, "a fresh load found something in memory");
        ensure!(loaded.io_uring && loaded.direct, "this machine refuses io_uring or direct I/O");
        speed.ours.push(loaded.mb_per_s());
        // Both of it in the same round: who asks again gets what is in memory.
        adopt.ours.push(adopt_ms(large)?);
        adopt.peer.push(adopt_ms(small)?);
        let best = DEPTHS.iter().map(|depth| fio_mb_per_s(large, depth)).collect::<Result<Vec<f64>>>()?;
        let best = best.into_iter().fold(0.0, f64::max);
        speed.peer.push(best);
        speed_without.ours.push(load(large, &["fresh", "waiting"])?.mb_per_s());
        speed_without.peer.push(best);
        // Each has the memory for itself.
        std::fs::remove_dir_all(&large.segments)?;
        llama.peer.push(loaders::llama_mb_per_s(files[0])?);
        python.peer.push(loaders::safetensors_mb_per_s(files[1])?);
        [&mut llama, &mut python].into_iter().for_each(|samples| samples.ours.push(loaded.mb_per_s()));
    }
    let row = Row::of_quantile("mistral-7b from cold disk, verified | best of fio".into(), "MB/s", 0.5, &speed);
    report.targets.push(Target::at_least(format!("ratio: {}", row.case), row.ratio, SHARE));
    report.rows.push(row);
    report.rows.push(Row::of_quantile("the same without io_uring | best of fio".into(), "MB/s", 0.5, &speed_without));
    let rows = [("llama.cpp", &llama), ("safetensors in Python", &python)]
        .map(|(name, samples)| Row::of_quantile(format!("the same | {name}, page cache cold"), "MB/s", 0.5, samples));
    let least = rows.iter().map(|row| row.ratio).fold(f64::INFINITY, f64::min);
    report.targets.push(Target::at_least("ratio to the better of the other loaders".into(), least, TIMES));
    report.rows.extend(rows);
    report.targets.push(Target::at_most("adopting mistral-7b from memory, ms".into(), median(&adopt.ours), ADOPT_MS));
    report.rows.push(Row::of_quantile("mistral-7b from memory | smollm2 from memory".into(), "ms", 0.5, &adopt));
    Ok(())
}

/// A checkpoint in a store, ingested unless it is there.
fn ingested(name: &'static str, checkpoint: &Path, folder: &Path) -> Result<Model> {
    let store = folder.join(format!("store-{name}"));
    step(&format!("ingesting {name}"), || example(&["ingest", &text(checkpoint), &text(&store)]))?;
    let segments = Path::new("/dev/shm").join(format!("foreshock-bench-{}-{name}", std::process::id()));
    Ok(Model { name, store, segments })
}

fn adopt_ms(model: &Model) -> Result<f64> {
    let loaded = load(model, &[])?;
    ensure!(loaded.read_bytes == 0, "{} was not in memory", model.name);
    Ok(loaded.ms)
}

fn load(model: &Model, options: &[&str]) -> Result<Loaded> {
    let (store, segments) = (text(&model.store), text(&model.segments));
    let said = example(&[&["load", &store, "0", &segments], options].concat())?;
    serde_json::from_str(&said).with_context(|| format!("the example said {said:?}"))
}

impl Loaded {
    fn mb_per_s(&self) -> f64 {
        self.read_bytes as f64 / 1e3 / self.ms
    }
}

fn example(args: &[&str]) -> Result<String> {
    stdout(&mut command(layout::target().join("release/examples/cold"), args))
}

/// All of a model's objects, one after the other.
fn fio_mb_per_s(model: &Model, depth: &str) -> Result<f64> {
    let (folder, depth) = (format!("--opendir={}", text(&model.store.join("objects"))), format!("--iodepth={depth}"));
    let fixed = ["--name=read", "--rw=read", "--bs=1M", "--direct=1", "--ioengine=io_uring", "--readonly"];
    let printed = stdout(&mut command("fio", &[&fixed[..], &["--output-format=json", &folder, &depth]].concat()))?;
    // Notes may come before the JSON.
    let json = printed.find('{').map_or("", |start| &printed[start..]);
    let said: serde_json::Value = serde_json::from_str(json).context("fio's answer is not as expected")?;
    let bytes_per_s = said["jobs"][0]["read"]["bw_bytes"].as_f64().context("fio does not say how fast it was")?;
    Ok(bytes_per_s / 1e6)
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
