//! Twenty fine-tunes of one base in a store: what they take on disk and in memory, against the base and the bytes that
//! differ. The base is the demo checkpoint in BF16; the fine-tunes are generated, with noise in place of training, and the
//! table says so.

use super::llama;
use super::report::{Report, Row, Samples, Target};
use crate::layout;
use crate::shell::{cargo, command, make_folder, run, stdout, step};
use anyhow::{Context, Result};
use serde::Deserialize;

/// Of the base and the bytes that differ.
const AT_MOST: f64 = 1.05;

/// What the example says of one fine-tune.
#[derive(Deserialize)]
struct Tune {
    name: String,
    /// Bytes that differ from the base's, one by one; of an adapter, all of its own.
    differing_bytes: f64,
    /// Bytes of tensors in which any does.
    changed_tensor_bytes: f64,
    written_bytes: f64,
    saved_bytes: f64,
    #[serde(default)]
    load_ms: f64,
}

/// And of all.
#[derive(Deserialize)]
struct All {
    base_bytes: f64,
    base_load_ms: f64,
    store_bytes: f64,
    adapter_bytes: f64,
    plain_object_bytes: f64,
    memory_bytes: f64,
}

pub fn measure() -> Result<Report> {
    crate::setup::for_bench()?;
    llama::install()?;
    let base = llama::requantised("BF16")?;
    run(&mut cargo(&["build", "--release", "--quiet", "-p", "engine-store", "--example", "tunes"]))?;
    let folder = layout::target().join("bench/fine-tunes");
    let _ = std::fs::remove_dir_all(&folder);
    make_folder(&folder)?;
    let (base, folder_text) = (base.to_string_lossy().into_owned(), folder.to_string_lossy().into_owned());
    let said = step("generating, ingesting and loading twenty fine-tunes", || {
        stdout(&mut command(layout::target().join("release/examples/tunes"), &[&base, &folder_text]))
    });
    let _ = std::fs::remove_dir_all(&folder);
    let said = said?;
    let (tunes, all) = said.trim().rsplit_once('\n').context("the example said too little")?;
    let tunes: Vec<Tune> = tunes.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok(report(&tunes, &serde_json::from_str(all)?))
}

fn report(tunes: &[Tune], all: &All) -> Report {
    let mut report = Report::new("fine-tunes");
    let sum = |of: fn(&Tune) -> f64| tunes.iter().map(of).sum::<f64>();
    let row = |case: String, unit, ours: f64, peer: f64| {
        Row::of_quantile(case, unit, 0.5, &Samples { ours: vec![ours], peer: vec![peer] })
    };
    let megabytes = |case: String, ours: f64, peer: f64| row(case, "MB", ours / 1e6, peer / 1e6);
    for tune in tunes {
        report.rows.push(megabytes(
            format!("{}: on disk | bytes that differ", tune.name),
            tune.written_bytes,
            tune.differing_bytes,
        ));
    }
    for tune in tunes.iter().filter(|tune| tune.name.starts_with("whole")) {
        report.rows.push(row(
            format!("{}: saved by differences | of its tensors' bytes", tune.name),
            "%",
            100.0 * tune.saved_bytes / tune.changed_tensor_bytes,
            100.0,
        ));
        report.rows.push(row(
            format!("{}: load from disk, its base in memory | load of the base", tune.name),
            "ms",
            tune.load_ms,
            all.base_load_ms,
        ));
    }
    let disk = all.store_bytes + all.adapter_bytes;
    let differing = all.base_bytes + sum(|tune| tune.differing_bytes);
    let changed = all.base_bytes + sum(|tune| tune.changed_tensor_bytes);
    let plain = all.plain_object_bytes + all.adapter_bytes;
    report.rows.push(megabytes("all: on disk | base and bytes that differ".into(), disk, differing));
    report.rows.push(megabytes(
        "all without differences: on disk | base and tensors that differ".into(),
        plain,
        changed,
    ));
    let in_memory = all.base_bytes + sum(|tune| if tune.load_ms > 0.0 { tune.changed_tensor_bytes } else { 0.0 });
    report.rows.push(megabytes("all: in memory | base and tensors that differ".into(), all.memory_bytes, in_memory));
    report.targets = vec![
        Target::at_most("on disk, of the base and the bytes that differ".into(), disk / differing, AT_MOST),
        Target::at_most(
            "without differences, of the base and the tensors that differ".into(),
            plain / changed,
            AT_MOST,
        ),
        Target::at_most(
            "in memory, of the base and the tensors that differ".into(),
            all.memory_bytes / in_memory,
            AT_MOST,
        ),
    ];
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_held_to_what_differs() {
        let tune = |name: &str, differing_bytes, written_bytes| Tune {
            name: name.into(),
            differing_bytes,
            changed_tensor_bytes: 100.0,
            written_bytes,
            saved_bytes: 100.0 - written_bytes,
            load_ms: 1.0,
        };
        let tunes = [tune("few-0", 60.0, 50.0), tune("whole-1", 40.0, 90.0)];
        let (store_bytes, memory_bytes) = (240.0, 330.0);
        let all = All {
            base_bytes: 100.0,
            base_load_ms: 1.0,
            store_bytes,
            adapter_bytes: 0.0,
            plain_object_bytes: 300.0,
            memory_bytes,
        };
        let report = report(&tunes, &all);
        let met: Vec<_> = report.targets.iter().map(|target| (target.value, target.met)).collect();
        assert_eq!(met, [(1.2, false), (1.0, true), (1.1, false)]);
    }
}
