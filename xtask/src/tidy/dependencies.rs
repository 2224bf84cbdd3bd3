//! Which crate may use which, and why each dependency from outside is there: both written down in
//! ARCHITECTURE.md, so that a new edge or dependency is a change that somebody reads.

use crate::layout;
use crate::shell::{cargo, stdout};
use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// Outside crates that a pure crate may use: data types, error types and arithmetic alone.
const PURE_CRATES: &[&str] = &["controller-core", "controller-forecast", "engine-core"];
const PURE_DEPENDENCIES: &[&str] =
    &["serde", "thiserror", "engine-core", "controller-forecast", "linfa-linalg", "ndarray"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// None for a normal one, else "dev" or "build".
    kind: Option<String>,
    /// Only of crates of this workspace.
    path: Option<String>,
}

type Edges = BTreeMap<String, BTreeSet<String>>;

/// Problems with edges and with the table of dependencies.
pub fn check() -> Result<Vec<String>> {
    let root = layout::root();
    let page = std::fs::read_to_string(root.join("ARCHITECTURE.md")).context("cannot read ARCHITECTURE.md")?;
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).context("cannot read Cargo.toml")?;
    let metadata = stdout(&mut cargo(&["metadata", "--no-deps", "--offline", "--format-version", "1"]))?;
    let metadata: Metadata = serde_json::from_str(&metadata).context("cargo metadata is not as expected")?;
    let mut problems = compare_edges(&listed_edges(&page), &actual_edges(&metadata));
    problems.extend(impure_dependencies(&metadata));
    problems.extend(unexplained(&page, &manifest));
    Ok(problems)
}

/// The block under "## Crate edges": lines `a -> b, c`.
fn listed_edges(page: &str) -> Edges {
    section(page, "## Crate edges")
        .filter_map(|line| line.split_once("->"))
        .map(|(from, to)| {
            let to = to.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
            (from.trim().to_owned(), to.collect())
        })
        .collect()
}

fn section<'a>(page: &'a str, heading: &'a str) -> impl Iterator<Item = &'a str> {
    page.lines().skip_while(move |line| *line != heading).skip(1).take_while(|line| !line.starts_with("## "))
}

fn actual_edges(metadata: &Metadata) -> Edges {
    let ours = |package: &Package| {
        package
            .dependencies
            .iter()
            .filter(|one| one.path.is_some())
            .map(|one| one.name.clone())
            .collect::<BTreeSet<_>>()
    };
    metadata.packages.iter().map(|package| (package.name.clone(), ours(package))).collect()
}

fn compare_edges(listed: &Edges, actual: &Edges) -> Vec<String> {
    let pairs = |edges: &Edges| {
        edges.iter().flat_map(|(from, to)| to.iter().map(move |to| (from.clone(), to.clone()))).collect::<BTreeSet<_>>()
    };
    let (listed, actual) = (pairs(listed), pairs(actual));
    let new =
        actual.difference(&listed).map(|(from, to)| format!("ARCHITECTURE.md: edge {from} -> {to} is not listed"));
    let gone = listed.difference(&actual).map(|(from, to)| format!("ARCHITECTURE.md: edge {from} -> {to} is gone"));
    new.chain(gone).collect()
}

fn impure_dependencies(metadata: &Metadata) -> Vec<String> {
    let pure = metadata.packages.iter().filter(|package| PURE_CRATES.contains(&package.name.as_str()));
    pure.flat_map(|package| {
        let normal = package.dependencies.iter().filter(|one| one.kind.as_deref() != Some("dev"));
        normal
            .filter(|one| !PURE_DEPENDENCIES.contains(&one.name.as_str()))
            .map(|one| format!("{}: a pure crate does not depend on {}", package.name, one.name))
    })
    .collect()
}

/// Dependencies of the root manifest without a row `| name | why |` under "## Dependencies".
fn unexplained(page: &str, manifest: &str) -> Vec<String> {
    let explained: BTreeSet<&str> = section(page, "## Dependencies")
        .filter_map(|line| line.strip_prefix('|')?.split('|').next())
        .flat_map(|cell| cell.split(','))
        .map(|name| name.trim().trim_matches('`'))
        .collect();
    outside_dependencies(manifest)
        .filter(|name| !explained.contains(name))
        .map(|name| format!("ARCHITECTURE.md: nothing under \"## Dependencies\" says why {name} is there"))
        .collect()
}

fn outside_dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.contains("path ="))
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.trim())
        .filter(|name| !name.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# A\n## Crate edges\n```\na -> b, c\nb ->\n```\n## Dependencies\n| crate | why |\n|---|---|\n| `x`, y | data |\n## End\n| z | no |\n";

    #[test]
    fn edges_are_compared_both_ways() {
        let check = |actual: &[(&str, &[&str])], want: &[&str]| {
            let to = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let actual = actual.iter().map(|(from, names)| ((*from).to_owned(), to(names))).collect();
            assert_eq!(compare_edges(&listed_edges(PAGE), &actual), want);
        };
        check(&[("a", &["b", "c"]), ("b", &[])], &[]);
        check(&[("a", &["b", "c"]), ("b", &["c"])], &["ARCHITECTURE.md: edge b -> c is not listed"]);
        check(&[("a", &["b"])], &["ARCHITECTURE.md: edge a -> c is gone"]);
    }

    #[test]
    fn each_outside_dependency_needs_a_reason() {
        let manifest = "[workspace.dependencies]\n# Words = more\nours = { path = \"o\" }\nx = \"1\"\ny = { version = \"1\" }\nz = \"1\"\n\n[profile.release]\nq = 1\n";
        assert_eq!(
            unexplained(PAGE, manifest),
            ["ARCHITECTURE.md: nothing under \"## Dependencies\" says why z is there"]
        );
    }

    #[test]
    fn pure_crates_stay_pure() {
        let metadata = r#"{"packages": [{"name": "engine-core", "dependencies": [
            {"name": "tokio", "kind": null, "path": null}, {"name": "proptest", "kind": "dev", "path": null}]}]}"#;
        let metadata: Metadata = serde_json::from_str(metadata).expect("valid");
        assert_eq!(impure_dependencies(&metadata), ["engine-core: a pure crate does not depend on tokio"]);
    }
}
