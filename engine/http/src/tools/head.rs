//! The beginning of a call, up to where its arguments begin: as soon as that is there, a stream can begin.

/// What the text of an object says so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Head<'a> {
    /// Nothing certain yet.
    More,
    /// A call of this function, whose arguments, an object, begin at this byte.
    Call { name: &'a str, arguments_at: usize },
    /// Perhaps a call, but not in the usual order: its whole text is needed.
    Unusual,
    /// No call of a function that exists.
    No,
}

/// The names under which models write arguments.
pub(crate) const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];

enum Stop {
    More,
    Unusual,
}

/// Reads the beginning of an object: `{"name": "f", "arguments": {"`, with any blanks.
pub(crate) fn read<'a>(text: &'a str, is_known: impl Fn(&str) -> bool) -> Head<'a> {
    match read_call(text) {
        Err(Stop::More) => Head::More,
        Err(Stop::Unusual) => Head::Unusual,
        Ok((name, _)) if !is_known(name) => Head::No,
        Ok((_, None)) => Head::More,
        Ok((name, Some(arguments_at))) => match text[arguments_at + 1..].trim_ascii_start().bytes().next() {
            None => Head::More,
            Some(b'"' | b'}') => Head::Call { name, arguments_at },
            Some(_) => Head::No,
        },
    }
}

/// The name, and where the arguments begin if that is there already.
fn read_call(text: &str) -> Result<(&str, Option<usize>), Stop> {
    let mut at = 0;
    take(text, &mut at, &["{"])?;
    take(text, &mut at, &["\"name\""])?;
    take(text, &mut at, &[":"])?;
    take(text, &mut at, &["\""])?;
    let rest = &text[at..];
    let Some(length) = rest.find(['"', '\\']) else {
        // Longer than any name.
        let hopeless = rest.len() > engine_wire::openai::MAX_FUNCTION_NAME_BYTES;
        return Err(if hopeless { Stop::Unusual } else { Stop::More });
    };
    if rest.as_bytes()[length] == b'\\' {
        return Err(Stop::Unusual);
    }
    let name = &rest[..length];
    at += length + 1;
    let mut open = || {
        take(text, &mut at, &[","])?;
        take(text, &mut at, &ARGUMENTS.map(|word| format!("\"{word}\"")).each_ref().map(String::as_str))?;
        take(text, &mut at, &[":"])?;
        take(text, &mut at, &["{"])
    };
    match open() {
        Ok(()) => Ok((name, Some(at - 1))),
        Err(Stop::More) => Ok((name, None)),
        Err(Stop::Unusual) => Err(Stop::Unusual),
    }
}

/// Goes past blanks and one of these words.
fn take(text: &str, at: &mut usize, words: &[&str]) -> Result<(), Stop> {
    let rest = text[*at..].trim_ascii_start();
    if let Some(word) = words.iter().find(|word| rest.starts_with(**word)) {
        *at = text.len() - rest.len() + word.len();
        return Ok(());
    }
    let begun = words.iter().any(|word| word.starts_with(rest));
    Err(if begun { Stop::More } else { Stop::Unusual })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_its_beginning() {
        let text = "{ \"name\" : \"f\", \"arguments\" :{ \"a\"";
        let read = |text| read(text, |name| name == "f");
        for length in 0..text.len() - 3 {
            assert_eq!(read(&text[..length]), Head::More, "{:?}", &text[..length]);
        }
        assert_eq!(read(&text[..text.len() - 2]), Head::Call { name: "f", arguments_at: 29 });
        for (text, expected) in [
            (r#"{"name":"f","parameters":{}"#, Head::Call { name: "f", arguments_at: 25 }),
            (r#"{"name":"g","#, Head::No),
            (r#"{"name":"f","arguments":{x"#, Head::No),
            (r#"{"name":"f","arguments":"x"#, Head::Unusual),
            (r#"{"name":"f"}"#, Head::Unusual),
            (r#"{"name":"\u0066"#, Head::Unusual),
            (r#"{"type":"#, Head::Unusual),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }
}
