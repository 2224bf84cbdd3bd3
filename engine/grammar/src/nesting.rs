//! How deeply a source nests. The parsers behind are recursive, and a stack that overflows ends the whole process, so
//! depth is bounded before anything is parsed.

use crate::GrammarError;

/// Deepest nesting of brackets in any source.
pub(crate) const MAX_DEPTH: usize = 64;

/// Intersections and negations of terminals in one grammar: each may multiply the work of compiling. A text without a certain
/// string takes two.
const MAX_COMBINED: usize = 4;

/// What a source is written in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Syntax {
    Json,
    Regex,
    Lark,
}

/// Refuses what nests too deeply, and in Lark what names tokens, which differ from model to
/// model, and what makes compiling explode.
pub(crate) fn check(source: &str, syntax: Syntax, what: &'static str) -> Result<(), GrammarError> {
    let (mut depth, mut deepest) = (0usize, 0usize);
    let mut combined = 0;
    let mut quote = None;
    let mut bytes = source.bytes().peekable();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (_, b'\\') => drop(bytes.next()),
            (Some(end), byte) if byte == end => quote = None,
            // A regular expression in Lark nests too, a text does not.
            (Some(b'/'), b'(' | b'[') | (None, b'(' | b'[' | b'{') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (Some(b'/'), b')' | b']') | (None, b')' | b']' | b'}') => depth = depth.saturating_sub(1),
            (Some(_), _) => {}
            (None, b'"') if syntax != Syntax::Regex => quote = Some(b'"'),
            (None, b'/') if syntax == Syntax::Lark => match bytes.peek() {
                Some(b'/') => drop(bytes.by_ref().find(|byte| *byte == b'\n')),
                _ => quote = Some(b'/'),
            },
            (None, b'<') if syntax == Syntax::Lark => {
                let message = "tokens cannot be named (<...>): a grammar is about text".to_owned();
                return Err(GrammarError::Invalid { message });
            }
            (None, b'&' | b'~') if syntax == Syntax::Lark => combined += 1,
            (None, _) => {}
        }
    }
    if combined > MAX_COMBINED {
        let unit = "intersections and negations (& and ~)";
        return Err(GrammarError::TooLarge { what, got: combined, limit: MAX_COMBINED, unit });
    }
    if deepest > MAX_DEPTH {
        return Err(GrammarError::TooLarge { what, got: deepest, limit: MAX_DEPTH, unit: "levels of nesting" });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_case(source: &str, syntax: Syntax, accepted: bool) {
        assert_eq!(check(source, syntax, "it").is_ok(), accepted, "{source:.80}");
    }

    #[test]
    fn brackets_are_counted_where_they_nest() {
        let deep = |open: &str, levels: usize| open.repeat(levels);
        for syntax in [Syntax::Json, Syntax::Regex, Syntax::Lark] {
            check_case(&deep("[", MAX_DEPTH), syntax, true);
            check_case(&deep("[", MAX_DEPTH + 1), syntax, false);
            check_case(&"[]".repeat(1000), syntax, true);
            check_case(&deep("\\(", 100), syntax, true);
        }
        check_case(&format!("\"{}\"", deep("(", 100)), Syntax::Lark, true);
        check_case(&format!("\"{}\"", deep("(", 100)), Syntax::Regex, false);
        check_case(&format!("start: /{}/", deep("(", 100)), Syntax::Lark, false);
        check_case(&format!("// it's \"{}\nstart: \"a\"", deep("(", 100)), Syntax::Lark, true);
        check_case(r#"start: "<[" "a" /<[a]/"#, Syntax::Lark, true);
        check_case("start: <[12]>", Syntax::Lark, false);
        check_case("start: <|im_end|>", Syntax::Lark, false);
        check_case("start: A\nA: /a/ & ~/b/", Syntax::Lark, true);
        check_case(&format!("start: A\nA: /a/ {}", "& /b/ ".repeat(MAX_COMBINED + 1)), Syntax::Lark, false);
    }
}
