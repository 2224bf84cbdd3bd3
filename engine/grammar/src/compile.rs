//! From a constraint to a grammar, and the check of one where no model is loaded.

use crate::error::shortened;
use crate::nesting::{self, Syntax};
use crate::{GrammarError, Vocabulary};
use engine_wire::constraint::{Constraint, JsonConstraint, MAX_CHOICE_STRINGS, MAX_CONSTRAINT_BYTES, MAX_REGEX_BYTES};
use llguidance::api::TopLevelGrammar;
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Between the parts of a JSON value: a blank, or a line feed and its indentation. Bounded, because a model that falls into
/// writing blanks would never come out.
const WHITESPACE: &str = r" |\n[ \t]{0,40}";
/// Where llguidance looks for options inside a schema.
const OPTIONS_KEY: &str = "x-guidance";

/// Stack of the thread that compiles. The parsers of schemas and grammars call themselves once for each reference that
/// leads to another, and a stack that overflows ends the process. Sources are bounded, so this is enough; pages that are not
/// used cost nothing.
const STACK_BYTES: usize = 256 << 20;

/// Longest time that a request waits for its grammar. The limits on work do not bound time well where expressions are
/// intersected; everything that people write takes milliseconds.
const COMPILE_LIMIT: Duration = Duration::from_secs(5);
/// Grammars compiled at a time in this process, those that nobody waits for any more among them.
const MAX_COMPILING: usize = 8;
static COMPILING: AtomicUsize = AtomicUsize::new(0);

/// Checks a constraint without a model. What passes here fails later only at limits that depend on a vocabulary.
pub fn check(constraint: &Constraint) -> Result<(), GrammarError> {
    static BYTES: LazyLock<Result<Vocabulary, GrammarError>> = LazyLock::new(Vocabulary::of_bytes);
    let bytes = BYTES.as_ref().map_err(Clone::clone)?;
    // The first mask finds a grammar without any text.
    match bytes.guide(constraint)?.mask() {
        Err(GrammarError::DeadEnd) => Err(GrammarError::Invalid { message: "no text meets it".to_owned() }),
        mask => mask.map(drop),
    }
}

/// The grammar of a constraint.
pub(crate) fn compile(constraint: &Constraint) -> Result<TopLevelGrammar, GrammarError> {
    match constraint {
        Constraint::Json(json) => {
            bounded("the JSON schema", json.schema.len(), MAX_CONSTRAINT_BYTES)?;
            Ok(TopLevelGrammar::from_json_schema(schema_value(json)?))
        }
        Constraint::Regex(regex) => {
            bounded("the regular expression", regex.len(), MAX_REGEX_BYTES)?;
            nesting::check(regex, Syntax::Regex, "the regular expression")?;
            // Classes are ASCII's, as in JSON Schema: who asks for \d wants a digit that a program can read.
            Ok(TopLevelGrammar::from_lark(format!("start: /{}/", regex_to_lark(regex, "dw"))))
        }
        Constraint::Lark(grammar) => {
            bounded("the grammar", grammar.len(), MAX_CONSTRAINT_BYTES)?;
            nesting::check(grammar, Syntax::Lark, "the grammar")?;
            Ok(TopLevelGrammar::from_lark(grammar.clone()))
        }
        Constraint::Choice(choices) => {
            if choices.is_empty() || choices.len() > MAX_CHOICE_STRINGS {
                let (got, limit) = (choices.len(), MAX_CHOICE_STRINGS);
                let none = GrammarError::Invalid { message: "there is no choice".to_owned() };
                let many = GrammarError::TooLarge { what: "the choice", got, limit, unit: "texts" };
                return Err(if got == 0 { none } else { many });
            }
            bounded("the choice", choices.iter().map(String::len).sum(), MAX_CONSTRAINT_BYTES)?;
            let texts: Vec<String> = choices.iter().map(|choice| literal(choice)).collect();
            Ok(TopLevelGrammar::from_lark(format!("start: {}", texts.join(" | "))))
        }
    }
}

/// A schema with the options that it is compiled with.
pub(crate) fn schema_value(json: &JsonConstraint) -> Result<Value, GrammarError> {
    nesting::check(&json.schema, Syntax::Json, "the JSON schema")?;
    let invalid = |message: String| GrammarError::Invalid { message };
    let value: Value = serde_json::from_str(&json.schema).map_err(|error| invalid(format!("no JSON: {error}")))?;
    let mut schema = match value {
        Value::Object(schema) => schema,
        Value::Bool(true) => Map::new(),
        Value::Bool(false) => return Err(invalid("no value meets the schema `false`".to_owned())),
        _ => return Err(invalid("a JSON schema is an object or a boolean".to_owned())),
    };
    let options = json!({
        "whitespace_flexible": json.whitespace,
        "whitespace_pattern": json.whitespace.then_some(WHITESPACE),
        "lenient": !json.strict,
    });
    schema.insert(OPTIONS_KEY.to_owned(), options);
    Ok(Value::Object(schema))
}

/// A text in Lark's syntax, which is JSON's.
pub(crate) fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

fn bounded(what: &'static str, got: usize, limit: usize) -> Result<(), GrammarError> {
    if got > limit { Err(GrammarError::TooLarge { what, got, limit, unit: "bytes" }) } else { Ok(()) }
}

/// Counts a thread that compiles, as long as it does.
struct Compiling;

impl Compiling {
    fn begin() -> Result<Self, GrammarError> {
        let one_more = |running: usize| (running < MAX_COMPILING).then_some(running + 1);
        match COMPILING.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more) {
            Ok(_) => Ok(Self),
            Err(_) => Err(GrammarError::Busy),
        }
    }
}

impl Drop for Compiling {
    fn drop(&mut self) {
        COMPILING.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Runs work that recurses as deep as a client's source leads it, and waits for it no longer than [`COMPILE_LIMIT`]. What
/// goes on after that comes to an end by its own limits, and until then is one of the few that may run.
pub(crate) fn on_deep_stack<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GrammarError> + Send + 'static,
) -> Result<T, GrammarError> {
    let failed = |message: String| GrammarError::Failed { message };
    let compiling = Compiling::begin()?;
    let (sender, done) = mpsc::sync_channel(1);
    let body = move || {
        let result = work();
        drop(compiling);
        let _ = sender.send(result);
    };
    let builder = std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES);
    builder.spawn(body).map_err(|error| failed(error.to_string()))?;
    match done.recv_timeout(COMPILE_LIMIT) {
        Ok(result) => result,
        Err(RecvTimeoutError::Timeout) => {
            let message = format!("it is not compiled after {} s", COMPILE_LIMIT.as_secs());
            Err(GrammarError::TooComplex { message })
        }
        // llguidance catches its panics itself; this is for those outside of what it guards.
        Err(RecvTimeoutError::Disconnected) => Err(failed("it panicked".to_owned())),
    }
}

/// An error of compiling, in words for a client. A source on which llguidance panics is no better than one that it refuses:
/// it would do so again.
pub(crate) fn compile_error(message: &str) -> GrammarError {
    let message = match message.strip_prefix("panic:") {
        Some(panic) => format!("it cannot be read:{panic}"),
        // Where it stands is of no use when the client's source is a part of what was parsed.
        None => message.find("regex parse error:").map_or(message, |at| &message[at..]).to_owned(),
    };
    let lines: Vec<&str> = message.lines().take_while(|line| !quotes_source(line)).collect();
    GrammarError::Invalid { message: shortened(&lines.join("\n")) }
}

/// Whether a line of an error shows the source: it begins with its number and a bar.
fn quotes_source(line: &str) -> bool {
    let rest = line.trim_start().trim_start_matches(|character: char| character.is_ascii_digit());
    rest.len() < line.trim_start().len() && rest.starts_with(" | ")
}
