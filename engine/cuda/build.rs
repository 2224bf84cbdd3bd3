//! Lists the compiled kernels in `cubins/`, which `cargo xtask gpu build` makes, as a table of embedded bytes.

use std::{env, fmt::Write, fs, path::Path};

fn main() {
    let folder = Path::new(&env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("cubins");
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut names: Vec<String> = fs::read_dir(&folder)
        .map(|entries| entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    names.retain(|name| [".cubin", ".ptx", ".cubin.zst", ".ptx.zst"].iter().any(|end| name.ends_with(end)));
    names.sort();
    let mut table = String::from("pub(super) const IMAGES: &[(&str, &[u8])] = &[\n");
    for name in names {
        let path = folder.join(&name);
        writeln!(table, "    ({name:?}, include_bytes!({path:?})),").expect("a string grows");
    }
    table.push_str("];\n");
    let out = Path::new(&env::var("OUT_DIR").expect("cargo sets it")).join("images.rs");
    fs::write(out, table).expect("the build folder can be written");
}
