//! The committed images, compressed, and the record of what they are: toolchain, sources, hash of each image.

use super::compile::{Built, Image, sha256};
use super::images;
use crate::shell::make_folder;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

/// Slow to make, quick to read.
const LEVEL: i32 = 19;
const ENDING: &str = "zst";

fn record_file() -> PathBuf {
    images().join("record.txt")
}

fn record(built: &Built) -> String {
    let lines = built.images.iter().map(|image| format!("{} {}\n", sha256(&image.bytes), image.name));
    let head = format!("toolchain: {}\nsources sha256: {}\n", built.toolchain, built.sources_sha256);
    std::iter::once(head).chain(lines).collect()
}

/// Writes images and record; removes images that no source makes any more.
pub fn write(built: &Built) -> Result<()> {
    make_folder(&images())?;
    let names: BTreeSet<String> = built.images.iter().map(|image| format!("{}.{ENDING}", image.name)).collect();
    for name in committed()?.difference(&names) {
        fs::remove_file(images().join(name)).with_context(|| format!("cannot remove {name}"))?;
    }
    for Image { name, bytes } in &built.images {
        let path = images().join(format!("{name}.{ENDING}"));
        // Left alone where it holds these bytes, since another version of the library may compress them otherwise.
        if unpack(&path).is_ok_and(|old| old == *bytes) {
            continue;
        }
        let packed = zstd::encode_all(bytes.as_slice(), LEVEL).context("cannot compress")?;
        fs::write(&path, packed).with_context(|| format!("cannot write {}", path.display()))?;
    }
    fs::write(record_file(), record(built)).with_context(|| format!("cannot write {}", record_file().display()))
}

/// Names of compressed images in the folder.
fn committed() -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(images()).with_context(|| format!("cannot read {}", images().display()))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.ends_with(&format!(".{ENDING}"))).collect())
}

fn unpack(path: &PathBuf) -> Result<Vec<u8>> {
    let packed = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    zstd::decode_all(packed.as_slice()).with_context(|| format!("{} is damaged", path.display()))
}

/// Fails unless the committed images and the record are what was just built.
pub fn compare(built: &Built) -> Result<()> {
    let advice = "run `cargo xtask gpu build` and commit the result";
    let recorded = fs::read_to_string(record_file())
        .with_context(|| format!("{} is missing; {advice}", record_file().display()))?;
    let names: BTreeSet<String> = built.images.iter().map(|image| format!("{}.{ENDING}", image.name)).collect();
    let present = committed()?;
    if let Some(name) = names.symmetric_difference(&present).next() {
        bail!(
            "engine/cuda/cubins/{name} is {}; {advice}",
            if present.contains(name) { "of no source" } else { "missing" }
        );
    }
    for Image { name, bytes } in &built.images {
        let committed = unpack(&images().join(format!("{name}.{ENDING}")))?;
        ensure!(
            committed == *bytes,
            "engine/cuda/cubins/{name}.{ENDING} is out of date: its source compiles to {}, committed is {}; {advice}",
            sha256(bytes),
            sha256(&committed)
        );
    }
    ensure!(recorded == record(built), "{} does not tell of the committed images; {advice}", record_file().display());
    Ok(())
}
