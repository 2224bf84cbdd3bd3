//! Length of functions. rustfmt puts a function's closing brace alone on a line, indented as its first line,
//! so its end is found without parsing.

use super::Source;

/// Longest function, lines from its `fn` to its closing brace.
const FUNCTION_LINES: usize = 70;

/// A problem for each function that is too long.
pub fn too_long(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let measured = lines.iter().enumerate().filter_map(|(first, line)| Some((first, function_name(line)?)));
    measured
        .filter_map(|(first, name)| Some((first, name, length(&lines[first..])?)))
        .filter(|(_, _, length)| *length > FUNCTION_LINES)
        .map(|(first, name, length)| {
            format!(
                "{}:{}: function `{name}` has {length} lines; past {FUNCTION_LINES} it is split",
                source.name,
                first + 1
            )
        })
        .collect()
}

fn function_name(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    loop {
        match words.next()? {
            "fn" => return words.next()?.split(['(', '<']).next(),
            word if is_qualifier(word) => {}
            _ => return None,
        }
    }
}

fn is_qualifier(word: &str) -> bool {
    ["pub", "async", "const", "unsafe", "extern"].contains(&word) || word.starts_with("pub(") || word.starts_with('"')
}

/// Lines to the closing brace; none for a declaration without a body or a function on one line.
fn length(lines: &[&str]) -> Option<usize> {
    let indent = indent_of(lines[0]);
    let opens = lines.iter().position(|line| line.trim_end().ends_with(['{', ';', '}']))?;
    if !lines[opens].trim_end().ends_with('{') {
        return None;
    }
    let closes = lines.iter().skip(opens + 1).position(|line| line.trim() == "}" && indent_of(line) == indent)?;
    Some(opens + 1 + closes + 1)
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_measured_to_their_brace() {
        let check =
            |text: &str, want: Option<usize>| assert_eq!(length(&text.lines().collect::<Vec<_>>()), want, "{text}");
        check("fn a() {\n    b();\n}\n}", Some(3));
        check("    fn a(\n        b: u8,\n    ) {\n        if b {\n        }\n    }\n}", Some(6));
        check("fn a();\nfn b() {\n}", None);
        check("fn a() {}\nfn b() {\n}", None);
        assert_eq!(function_name("    pub(crate) async fn a<T>(x: T) {"), Some("a"));
        assert_eq!(function_name("/// A fn in words"), None);
    }

    #[test]
    fn a_long_one_is_named() {
        let text = format!("fn a() {{\n{}}}\n", "    b();\n".repeat(FUNCTION_LINES));
        let problems = too_long(&Source { name: "x.rs".to_owned(), text });
        assert_eq!(problems, ["x.rs:1: function `a` has 72 lines; past 70 it is split"]);
    }
}
