//! Rules about one file's text. They look at text alone, which rustfmt keeps regular enough.

use super::{Source, functions};

/// Where unsafe code may stand.
const UNSAFE_FOLDERS: &[&str] = &[
    "ebpf/",
    "controller/witness/",
    "controller/gpu/src/nvml.rs",
    "engine/runtime/src/kernels/",
    "engine/runtime/src/kernels.rs",
    "engine/store/",
    "engine/cuda/",
];
/// Where the environment may be read.
const ENVIRONMENT_FOLDERS: &[&str] = &[
    "controller/foreshock/",
    "xtask/",
    "tests/",
    "ebpf/probes/",
    // Which GPU tests run on.
    "engine/cuda/emulator/",
    "engine/cuda/build.rs",
];
/// Crates that are functions of their inputs: no clock, randomness, I/O or async runtime, and no collection
/// whose order differs from run to run.
const PURE_FOLDERS: &[&str] = &["controller/core/src/", "engine/core/src/"];
const IMPURE: &[&str] = &[
    "tokio",
    "warp::",
    "Instant",
    "SystemTime",
    "std::fs",
    "std::net",
    "std::env",
    "std::thread",
    "std::io",
    "std::process",
    "rand::",
    "HashMap",
    "HashSet",
    "async fn",
    ".await",
];
/// Names that say nothing of what a file is about.
const EMPTY_NAMES: &[&str] = &["manager", "helper", "util", "misc"];
/// Hosts that text may point to. Anything else is either a registry, which belongs in nobody's code, or a slip.
const HOSTS: &[&str] = &[
    "localhost",
    "www.apache.org",
    "github.com",
    "arxiv.org",
    "www.w3.org",
    "example.com",
    "prometheus.io",
    "grafana.com",
    // Where `hf://` is unless told otherwise.
    "huggingface.co",
];
/// Longest file, lines.
const FILE_LINES: usize = 500;

/// All problems of one file.
pub fn check(source: &Source) -> Vec<String> {
    let mut problems = Vec::new();
    check_name(source, &mut problems);
    if source.name.ends_with("Cargo.lock") || source.name == "LICENSE" {
        return problems;
    }
    check_places(source, &mut problems);
    if source.name.ends_with(".rs") {
        check_rust(source, &mut problems);
    }
    problems
}

fn check_name(source: &Source, problems: &mut Vec<String>) {
    let file = source.name.rsplit('/').next().unwrap_or("");
    if let Some(word) = EMPTY_NAMES.iter().find(|word| file.contains(*word)) {
        problems.push(format!("{}: `{word}` names nothing; say what the file is about", source.name));
    }
}

fn check_places(source: &Source, problems: &mut Vec<String>) {
    // The needle is put together here so that this file passes its own check.
    let machine_folder = ["/", "work", "/"].concat();
    for (number, line) in (1..).zip(source.text.lines()) {
        if line.contains(&machine_folder) {
            problems.push(format!("{}:{number}: a path of one machine", source.name));
        }
        for host in hosts(line) {
            if !HOSTS.contains(&host) {
                problems.push(format!("{}:{number}: host `{host}` is not among those that tidy knows", source.name));
            }
        }
    }
}

/// Host names of the URLs in a line; addresses, placeholders and made-up one-word hosts are left out.
fn hosts(line: &str) -> Vec<&str> {
    line.match_indices("://")
        .map(|(at, scheme_end)| &line[at + scheme_end.len()..])
        .map(|rest| rest.split(|c: char| !(c.is_ascii_alphanumeric() || "-._{}$[]".contains(c))).next().unwrap_or(""))
        .filter(|host| host.contains('.') && !host.contains(['{', '$', '[']))
        .filter(|host| host.parse::<std::net::Ipv4Addr>().is_err())
        .collect()
}

fn check_rust(source: &Source, problems: &mut Vec<String>) {
    let name = &source.name;
    if !source.text.starts_with("//!") {
        problems.push(format!("{name}: does not open with `//!`: what it is and why it is so"));
    }
    let lines = source.text.lines().count();
    if lines > FILE_LINES {
        problems.push(format!("{name}: {lines} lines; past {FILE_LINES} a file is split along a real seam"));
    }
    problems.extend(functions::too_long(source));
    let unfinished =
        [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["todo", "!("].concat(), ["unimplemented", "!("].concat()];
    for (number, line) in (1..).zip(source.text.lines()) {
        if let Some(word) = unfinished.iter().find(|word| line.contains(*word)) {
            problems.push(format!("{name}:{number}: `{word}`: finish it or file it"));
        }
        let code = without_comment(line);
        if has_unsafe(code) && !stands_in(name, UNSAFE_FOLDERS) {
            problems.push(format!("{name}:{number}: unsafe code stands only in {}", UNSAFE_FOLDERS.join(", ")));
        }
        if reads_environment(code) && !stands_in(name, ENVIRONMENT_FOLDERS) {
            problems
                .push(format!("{name}:{number}: the environment is read only in {}", ENVIRONMENT_FOLDERS.join(", ")));
        }
        if stands_in(name, PURE_FOLDERS)
            && let Some(word) = IMPURE.iter().find(|word| contains_word(code, word))
        {
            problems.push(format!("{name}:{number}: `{word}` in a pure crate"));
        }
    }
}

fn stands_in(name: &str, folders: &[&str]) -> bool {
    folders.iter().any(|folder| name.starts_with(folder))
}

/// The line up to a comment. A `//` inside a string ends it too, which only ever hides text from a check.
fn without_comment(line: &str) -> &str {
    line.split("//").next().unwrap_or("")
}

fn has_unsafe(code: &str) -> bool {
    let keyword = ["un", "safe"].concat();
    ["{", "fn", "impl", "extern", "trait"].iter().any(|next| contains_word(code, &format!("{keyword} {next}")))
}

fn reads_environment(code: &str) -> bool {
    ["env::var(", "env::vars(", "env::var_os(", "env::vars_os("].iter().any(|call| code.contains(call))
}

/// Whether `word` occurs in `code` not as the tail or head of a longer identifier.
fn contains_word(code: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(part_of_name) && word.starts_with(part_of_name);
        let after = code[at + word.len()..].chars().next().is_some_and(part_of_name) && word.ends_with(part_of_name);
        !before && !after
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(name: &str, text: &str) -> usize {
        check(&Source { name: name.to_owned(), text: text.to_owned() }).len()
    }

    #[test]
    fn each_rule_finds_its_violation_and_nothing_else() {
        let keyword = ["un", "safe"].concat();
        let check = |name: &str, text: &str, want: usize| assert_eq!(problems(name, text), want, "{name}: {text}");
        check("engine/http/src/a.rs", "//! Doc.\nfn f() {}\n", 0);
        check("engine/http/src/a.rs", "fn f() {}\n", 1);
        check("engine/http/src/a.rs", &format!("//! Doc.\nlet x = {keyword} {{ y }};\n"), 1);
        check("engine/store/src/a.rs", &format!("//! Doc.\nlet x = {keyword} {{ y }};\n"), 0);
        check("engine/http/src/a.rs", &format!("//! Doc.\n// {keyword} {{ in a comment\n"), 0);
        check("engine/http/src/a.rs", "//! Doc.\nlet a = std::env::var(\"A\");\n", 1);
        check("xtask/src/a.rs", "//! Doc.\nlet a = std::env::var(\"A\");\n", 0);
        check("engine/core/src/a.rs", "//! Doc.\nuse std::collections::HashMap;\n", 1);
        check("engine/core/src/a.rs", "//! Doc.\nlet instant_ns = InstantaneousRate;\n", 0);
        check("engine/http/src/a.rs", &format!("//! Doc.\n// {}: later\n", ["TO", "DO"].concat()), 1);
        check("engine/http/src/http_utils.rs", "//! Doc.\n", 1);
        check("engine/http/src/a.rs", &format!("//! Doc.\n{}", "//\n".repeat(FILE_LINES)), 1);
        check("docs/a.md", &["see https:/", "/registry.example.org/x"].concat(), 1);
        check("docs/a.md", "see http://127.0.0.1:8080/v1 and http://{addr}/x", 0);
        check("docs/a.md", &["in /", "work", "/main"].concat(), 1);
    }
}
