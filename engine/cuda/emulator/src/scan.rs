//! Reads CUDA sources: which kernels a file has, and what its declarations of shared memory become for g++.
//!
//! Kernels are written in one plain shape, `extern "C" __global__ void name(...)`, so no parser is needed. Edits keep the
//! number of lines, so that messages and breakpoints fit the original.

/// An entry of a `.cu` file.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// First argument of its `__launch_bounds__`, as written; 1024 without.
    pub most_threads: String,
}

/// What is wrong in a source, and at which byte.
pub type Problem = (usize, String);

/// The text with comments, strings and preprocessor lines blanked, as long as before.
fn masked(text: &str) -> String {
    let mut out: Vec<u8> = text.bytes().collect();
    let bytes = text.as_bytes();
    let mut at = 0;
    let mut line_is_blank = true;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let length = match rest {
            [b'/', b'/', ..] => end_of_line(rest),
            [b'/', b'*', ..] => text[at..].find("*/").map_or(rest.len(), |end| end + 2),
            [b'"', ..] => end_of_string(rest),
            [b'#', ..] if line_is_blank => end_of_line(rest),
            _ => 0,
        };
        for byte in &mut out[at..at + length] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        line_is_blank = match bytes.get(at + length) {
            Some(b'\n') => true,
            Some(byte) => line_is_blank && byte.is_ascii_whitespace(),
            None => line_is_blank,
        };
        at += length + usize::from(length == 0 || bytes.get(at + length) == Some(&b'\n'));
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Up to the line's end, and on where a backslash continues it.
fn end_of_line(rest: &[u8]) -> usize {
    let ends = |at: &usize| rest[*at] == b'\n' && (*at == 0 || rest[*at - 1] != b'\\');
    (0..rest.len()).find(ends).unwrap_or(rest.len())
}

fn end_of_string(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += 1 + usize::from(rest[at] == b'\\');
    }
    (at + 1).min(rest.len())
}

/// The entries of a file, in order.
pub fn entries(text: &str) -> Result<Vec<Entry>, Problem> {
    let masked = masked(text);
    words(&masked, "__global__").map(|at| entry(text, &masked, at)).collect()
}

/// Where a word stands by itself.
fn words<'a>(masked: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    masked.match_indices(word).map(|(at, _)| at).filter(move |at| {
        let before = masked[..*at].chars().next_back().is_some_and(is_name);
        let after = masked[at + word.len()..].chars().next().is_some_and(is_name);
        !before && !after
    })
}

fn entry(text: &str, masked: &str, at: usize) -> Result<Entry, Problem> {
    let wrong = |problem: &str| (at, problem.to_owned());
    if !text[..at].trim_end().ends_with("extern \"C\"") {
        return Err(wrong("a kernel is written `extern \"C\" __global__ void name(...)`"));
    }
    let mut rest = masked[at + "__global__".len()..].trim_start();
    let mut most_threads = "1024".to_owned();
    loop {
        let name_length = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let (word, behind) = rest.split_at(name_length);
        let behind = behind.trim_start();
        match word {
            "" => return Err(wrong("cannot read the name of this kernel")),
            "void" => rest = behind,
            "__launch_bounds__" => {
                let (inside, behind) = parentheses(behind).ok_or_else(|| wrong("cannot read its __launch_bounds__"))?;
                most_threads = inside.split(',').next().unwrap_or("1024").trim().to_owned();
                rest = behind.trim_start();
            }
            name if behind.starts_with('(') => return Ok(Entry { name: name.to_owned(), most_threads }),
            _ => return Err(wrong("cannot read the name of this kernel")),
        }
    }
}

/// What stands between the parenthesis at the beginning and its partner, and what follows.
fn parentheses(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        if depth == 0 {
            return Some((text.get(1..at)?, &text[at + 1..]));
        }
    }
    None
}

/// The text with declarations of shared memory as g++ is to read them.
pub fn for_host(text: &str) -> Result<String, Problem> {
    let masked = masked(text);
    let mut out = String::with_capacity(text.len() + 256);
    let mut done = 0;
    for at in words(&masked, "__shared__") {
        let end = masked[at..].find(';').map(|length| at + length).ok_or((at, "no `;` behind this".to_owned()))?;
        let begin = statement_begin(&masked, at);
        let replaced = declaration(&masked[begin..end]).map_err(|problem| (at, problem))?;
        out.push_str(&text[done..begin]);
        out.push_str(&replaced);
        out.extend(masked[begin..end].chars().filter(|c| *c == '\n'));
        done = end + 1;
    }
    out.push_str(&text[done..]);
    Ok(out)
}

/// `extern` and `static` may stand before the word.
fn statement_begin(masked: &str, at: usize) -> usize {
    let before = masked[..at].trim_end();
    ["extern", "static"].iter().find_map(|word| before.strip_suffix(word)).map_or(at, str::len)
}

/// `extern __shared__ __align__(16) char raw[]` or `__shared__ float part[4][32]`.
fn declaration(text: &str) -> Result<String, String> {
    let is_dynamic = text.trim_start().starts_with("extern");
    let mut rest = text.trim_start_matches(|c: char| c.is_whitespace());
    let mut align = None;
    loop {
        rest = rest.trim_start();
        if let Some(behind) = ["extern", "static", "__shared__"].iter().find_map(|word| rest.strip_prefix(word)) {
            rest = behind;
        } else if let Some(behind) = ["__align__", "alignas"].iter().find_map(|word| rest.strip_prefix(word)) {
            let (inside, behind) = parentheses(behind.trim_start()).ok_or("cannot read its alignment")?;
            align = Some(inside.trim());
            rest = behind;
        } else {
            break;
        }
    }
    let (head, dimensions) = rest.split_at(rest.find('[').unwrap_or(rest.len()));
    let head = head.trim_end();
    let name_begin = head.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map_or(0, |at| at + 1);
    let (kind, name) = (head[..name_begin].trim(), &head[name_begin..]);
    if kind.is_empty() || name.is_empty() || rest.contains('=') || commas_outside(kind) || commas_outside(dimensions) {
        return Err(
            "shared memory is declared one variable at a time, `__shared__ T name[n];`, without a value".to_owned()
        );
    }
    let dimensions = dimensions.split_whitespace().collect::<Vec<_>>().join(" ");
    let kind = kind.split_whitespace().collect::<Vec<_>>().join(" ");
    if is_dynamic {
        let align = align.map_or_else(|| format!("alignof({kind})"), str::to_owned);
        return Ok(format!("{kind}* const {name} = emu::dynamic<{kind}>(\"{name}\", {align});"));
    }
    let align = align.map_or_else(|| format!("alignof(shared_type_{name})"), str::to_owned);
    Ok(format!(
        "typedef {kind} shared_type_{name}{dimensions}; static const char shared_tag_{name} = 0; \
         shared_type_{name}& {name} = emu::shared<shared_type_{name}>(&shared_tag_{name}, \"{name}\", {align});"
    ))
}

fn commas_outside(text: &str) -> bool {
    let mut depth = 0;
    text.chars().any(|c| {
        depth += match c {
            '(' | '[' | '<' => 1,
            ')' | ']' | '>' => -1,
            _ => 0,
        };
        c == ',' && depth == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_found_in_their_one_shape() {
        let text = "// extern \"C\" __global__ void comment(int a);\n#define K extern \"C\" __global__ void macro()\n\
                    extern \"C\" __global__ void plain(float* out, int n) {\n}\n\
                    extern \"C\" __global__ void __launch_bounds__(W * 32, 2)\nbounded(const void* a) {}\n\
                    extern \"C\" __global__ __launch_bounds__(128) void before(int n) {}\n";
        let want = [("plain", "1024"), ("bounded", "W * 32"), ("before", "128")];
        let found = entries(text).expect("valid");
        assert_eq!(found.iter().map(|one| (one.name.as_str(), one.most_threads.as_str())).collect::<Vec<_>>(), want);
    }

    #[test]
    fn other_shapes_are_refused_where_they_stand() {
        let text = "int a;\n__global__ void mangled(int n) {}\n";
        assert_eq!(entries(text).expect_err("no extern").0, 7);
        let check = |text: &str| assert!(for_host(text).is_err(), "{text}");
        check("__shared__ float a[2], b[2];");
        check("__shared__ float a = 1;");
        check("__shared__ a;");
    }

    #[test]
    fn shared_memory_becomes_slots_on_the_same_lines() {
        let check = |text: &str, want: &str| assert_eq!(for_host(text).expect("valid"), want);
        check(
            "  extern __shared__ __align__(16) unsigned char raw[];\nx",
            "  unsigned char* const raw = emu::dynamic<unsigned char>(\"raw\", 16);\nx",
        );
        check(
            "__shared__ T part\n  [2][N];",
            "typedef T shared_type_part[2][N]; static const char shared_tag_part = 0; shared_type_part& part = \
             emu::shared<shared_type_part>(&shared_tag_part, \"part\", alignof(shared_type_part));\n",
        );
        check(
            "// __shared__ float a;\nf(\"__shared__\"); my__shared__x;",
            "// __shared__ float a;\nf(\"__shared__\"); my__shared__x;",
        );
        check(
            "__shared__ Pair<int, 4> total;",
            "typedef Pair<int, 4> shared_type_total; static const char shared_tag_total = 0; shared_type_total& total = \
             emu::shared<shared_type_total>(&shared_tag_total, \"total\", alignof(shared_type_total));",
        );
    }
}
