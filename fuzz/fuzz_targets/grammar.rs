//! Any schema, regular expression, grammar or choice has a verdict; the first byte says which it is. A panic of the grammar
//! engine is caught inside, so what is looked for here is what cannot be: stacks that overflow, and work without bound.
#![no_main]

use engine_grammar::check;
use engine_wire::constraint::{Constraint, JsonConstraint};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let Ok(source) = std::str::from_utf8(rest) else { return };
    let source = source.to_owned();
    let constraint = match kind % 4 {
        0 => Constraint::Regex(source),
        1 => Constraint::Lark(source),
        2 => Constraint::Choice(source.split('\n').map(str::to_owned).collect()),
        _ => Constraint::Json(JsonConstraint { schema: source, strict: kind & 4 == 0, whitespace: kind & 8 == 0 }),
    };
    let _ = check(&constraint);
});
