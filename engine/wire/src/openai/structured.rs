//! What an output must be, in all the ways that clients say it: OpenAI's `response_format`, vLLM's `structured_outputs`
//! and the `guided_...` parameters that came before it. One constraint per request: two that disagree have no output, and
//! two that agree are one.
//!
//! Here it is read and bounded. Whether it can be met is for the grammar engine to say.

use super::fields::{Fields, RequestError, kind_of, parse, shorten, wrong_type};
use crate::constraint::{Constraint, JsonConstraint, MAX_CHOICE_STRINGS, MAX_CONSTRAINT_BYTES, MAX_REGEX_BYTES};
use serde_json::value::RawValue;

/// Longest name of a schema.
const MAX_NAME_BYTES: usize = 64;

/// A constraint, and the parameter that asked for it.
pub(super) type Asked = Option<(String, Constraint)>;

/// Takes every parameter that may hold a constraint.
pub(super) fn parse_constraint(fields: &mut Fields<'_>) -> Result<Asked, RequestError> {
    let mut asked = None;
    if let Some(raw) = fields.take_raw("response_format") {
        join(&mut asked, parse_response_format(raw)?)?;
    }
    if let Some(raw) = fields.take_raw("structured_outputs") {
        join(&mut asked, parse_structured_outputs(raw)?)?;
    }
    join(&mut asked, parse_kinds(fields, ["guided_json", "guided_regex", "guided_grammar", "guided_choice"], true)?)?;
    fields.ignore(&["guided_decoding_backend"]);
    Ok(asked)
}

fn join(asked: &mut Asked, another: Asked) -> Result<(), RequestError> {
    match (asked.as_ref(), another) {
        (_, None) => Ok(()),
        (None, another) => {
            *asked = another;
            Ok(())
        }
        (Some((first, _)), Some((second, _))) => {
            let message =
                format!("'{second}' together with '{first}': an output follows one constraint. Leave one of them out.");
            Err(RequestError::at(second, message))
        }
    }
}

fn parse_response_format(raw: &RawValue) -> Result<Asked, RequestError> {
    let mut format = Fields::of_object(raw, "response_format.".to_owned())?;
    let kind: String = format.require("type", "a string")?;
    let constraint = match kind.as_str() {
        "text" => None,
        "json_object" => Some(Constraint::json_object()),
        "json_schema" => {
            let raw = format.take_raw("json_schema").ok_or_else(|| format.missing("json_schema"))?;
            Some(parse_named_schema(raw)?)
        }
        other => {
            let message = format!(
                "Invalid value for 'response_format.type': '{}'. Supported values are: 'text', 'json_object' and 'json_schema'.",
                shorten(other)
            );
            return Err(RequestError::at("response_format.type", message));
        }
    };
    format.finish()?;
    Ok(constraint.map(|constraint| ("response_format".to_owned(), constraint)))
}

fn parse_named_schema(raw: &RawValue) -> Result<Constraint, RequestError> {
    let mut named = Fields::of_object(raw, "response_format.json_schema.".to_owned())?;
    let name: String = named.require("name", "a string")?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.bytes().all(plain) {
        let message = format!(
            "Invalid 'response_format.json_schema.name': expected 1 to {MAX_NAME_BYTES} letters, digits, underscores and dashes."
        );
        return Err(RequestError::at("response_format.json_schema.name", message));
    }
    // For people and for templates that show it; ours do not.
    named.take::<String>("description", "a string")?;
    let strict = named.take("strict", "a boolean")?.unwrap_or(false);
    let schema = named.take_raw("schema").ok_or_else(|| named.missing("schema"))?;
    let schema = schema_text(schema, "response_format.json_schema.schema")?;
    named.finish()?;
    Ok(Constraint::Json(JsonConstraint { schema, strict, whitespace: true }))
}

fn parse_structured_outputs(raw: &RawValue) -> Result<Asked, RequestError> {
    let mut fields = Fields::of_object(raw, "structured_outputs.".to_owned())?;
    let whitespace = !fields.take("disable_any_whitespace", "a boolean")?.unwrap_or(false);
    let mut asked = parse_kinds(&mut fields, ["json", "regex", "grammar", "choice"], whitespace)?;
    if fields.take("json_object", "a boolean")?.unwrap_or(false) {
        let mut constraint = Constraint::json_object();
        if let Constraint::Json(json) = &mut constraint {
            json.whitespace = whitespace;
        }
        join(&mut asked, Some(("structured_outputs.json_object".to_owned(), constraint)))?;
    }
    for other in ["structural_tag", "whitespace_pattern"] {
        fields.unsupported(other, |_| false)?;
    }
    // There is one grammar engine: nothing to fall back to.
    fields.ignore(&["disable_fallback", "disable_additional_properties"]);
    fields.finish()?;
    if asked.is_none() {
        let message = "Invalid 'structured_outputs': expected one of json, regex, grammar, choice and json_object.";
        return Err(RequestError::at("structured_outputs", message));
    }
    Ok(asked)
}

/// The four kinds by the names that they have in this object: JSON schema, regular expression, grammar, choice.
fn parse_kinds(
    fields: &mut Fields<'_>,
    [json, regex, grammar, choice]: [&str; 4],
    whitespace: bool,
) -> Result<Asked, RequestError> {
    let mut asked = None;
    if let Some(raw) = fields.take_raw(json) {
        let param = fields.param(json);
        let schema = schema_text(raw, &param)?;
        // As a schema of response_format that is not strict: vLLM's clients send what pydantic writes.
        let constraint = Constraint::Json(JsonConstraint { schema, strict: false, whitespace });
        join(&mut asked, Some((param, constraint)))?;
    }
    if let Some(source) = fields.take::<String>(regex, "a string")? {
        let param = fields.param(regex);
        bounded(&param, source.len(), MAX_REGEX_BYTES)?;
        join(&mut asked, Some((param, Constraint::Regex(source))))?;
    }
    if let Some(source) = fields.take::<String>(grammar, "a string")? {
        let param = fields.param(grammar);
        bounded(&param, source.len(), MAX_CONSTRAINT_BYTES)?;
        join(&mut asked, Some((param, Constraint::Lark(source))))?;
    }
    if let Some(choices) = fields.take::<Vec<String>>(choice, "an array of strings")? {
        let param = fields.param(choice);
        if choices.is_empty() || choices.len() > MAX_CHOICE_STRINGS {
            let message =
                format!("Invalid '{param}': it has {} strings. Expected 1 to {MAX_CHOICE_STRINGS}.", choices.len());
            return Err(RequestError::at(param, message));
        }
        bounded(&param, choices.iter().map(String::len).sum(), MAX_CONSTRAINT_BYTES)?;
        join(&mut asked, Some((param, Constraint::Choice(choices))))?;
    }
    Ok(asked)
}

/// A schema as an object or boolean, or as a string that holds one, as vLLM takes it too.
fn schema_text(raw: &RawValue, param: &str) -> Result<String, RequestError> {
    const EXPECTED: &str = "a JSON schema";
    let text = match kind_of(raw) {
        "an object" | "a boolean" => raw.get().to_owned(),
        "a string" => parse(raw, param, EXPECTED)?,
        _ => return Err(wrong_type(param, EXPECTED, raw)),
    };
    bounded(param, text.len(), MAX_CONSTRAINT_BYTES)?;
    Ok(text)
}

fn bounded(param: &str, bytes: usize, limit: usize) -> Result<(), RequestError> {
    if bytes <= limit {
        return Ok(());
    }
    let message = format!("Invalid '{param}': it has {bytes} bytes. At most {limit} are accepted.");
    Err(RequestError::at(param, message))
}
