//! An engine's command line: words, some in quotes, with placeholders that are filled in for each instance. Words are
//! split before they are filled, so a path with blanks in it stays one word, and no shell ever sees any of it.

use super::EngineError;

/// What may stand in braces.
pub const NAMES: [&str; 8] = ["path", "port", "name", "context", "context_all", "slots", "cores", "threads"];

/// What the placeholders stand for.
#[derive(Clone, Debug)]
pub struct Values<'a> {
    /// The checkpoint, absolute.
    pub path: &'a str,
    /// TCP port that the instance is to listen on.
    pub port: u16,
    /// The name that requests give.
    pub name: &'a str,
    /// Longest sequence, tokens.
    pub context_tokens: u32,
    /// Sequences at a time.
    pub slots: u32,
    /// Cores that the instance is confined to.
    pub cores: &'a [u32],
}

impl Values<'_> {
    fn of(&self, name: &str) -> Option<String> {
        Some(match name {
            "path" => self.path.to_owned(),
            "port" => self.port.to_string(),
            "name" => self.name.to_owned(),
            "context" => self.context_tokens.to_string(),
            "context_all" => (u64::from(self.context_tokens) * u64::from(self.slots)).to_string(),
            "slots" => self.slots.to_string(),
            "cores" => self.cores.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
            "threads" => self.cores.len().max(1).to_string(),
            _ => return None,
        })
    }
}

/// Checks a command line without an instance to start.
pub fn check(template: &str) -> Result<(), EngineError> {
    let values = Values { path: "", port: 0, name: "", context_tokens: 0, slots: 0, cores: &[] };
    fill(template, &values)?;
    if template.contains("{port}") { Ok(()) } else { Err(EngineError::NoPort) }
}

/// Program and arguments.
pub fn fill(template: &str, values: &Values<'_>) -> Result<Vec<String>, EngineError> {
    split(template)?.iter().map(|word| fill_word(word, values)).collect()
}

/// Splits at blanks that stand in no quotes. A quote of one kind may stand in quotes of the other.
pub fn split(template: &str) -> Result<Vec<String>, EngineError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for character in template.chars() {
        match (quote, character) {
            (Some(open), _) if open == character => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                // Empty quotes are a word too.
                word.get_or_insert_default();
            }
            (None, blank) if blank.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err(EngineError::OpenQuote { command: template.to_owned() });
    }
    words.extend(word);
    if words.is_empty() { Err(EngineError::EmptyCommand) } else { Ok(words) }
}

/// Only small letters and underscores between braces are a placeholder, so that JSON among the arguments stays as it is.
fn fill_word(word: &str, values: &Values<'_>) -> Result<String, EngineError> {
    let mut filled = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let name = after.split_once('}').map(|(name, _)| name);
        let name = name.filter(|name| !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        rest = match name {
            Some(name) => {
                let value = values.of(name).ok_or_else(|| EngineError::Placeholder { name: name.to_owned() })?;
                filled.push_str(&value);
                &after[name.len() + 1..]
            }
            None => {
                filled.push('{');
                after
            }
        };
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_debug_snapshot;

    #[test]
    fn words_are_split_before_they_are_filled() {
        let values = Values {
            path: "/models/my model.gguf",
            port: 4711,
            name: "chat",
            context_tokens: 2_048,
            slots: 4,
            cores: &[2, 3],
        };
        let check = |template: &str| fill(template, &values);
        assert_debug_snapshot!(check("prog --port={port}  --model {path} -c {context_all}/{context}").unwrap(), @r#"
        [
            "prog",
            "--port=4711",
            "--model",
            "/models/my model.gguf",
            "-c",
            "8192/2048",
        ]
        "#);
        assert_debug_snapshot!(
            check(r#"'a b' "" -j '{"a": 1, "b": {}}' --cores {cores} -t"{threads}" {name}{slots}"#).unwrap(),
            @r#"
        [
            "a b",
            "",
            "-j",
            "{\"a\": 1, \"b\": {}}",
            "--cores",
            "2,3",
            "-t2",
            "chat4",
        ]
        "#
        );
        assert_eq!(check("a {b} c"), Err(EngineError::Placeholder { name: "b".to_owned() }));
        assert_eq!(check("  "), Err(EngineError::EmptyCommand));
    }

    #[test]
    fn every_name_stands_for_something() {
        let values = Values { path: "p", port: 1, name: "n", context_tokens: 2, slots: 3, cores: &[4] };
        assert!(NAMES.iter().all(|name| values.of(name).is_some_and(|value| !value.is_empty())));
    }
}
