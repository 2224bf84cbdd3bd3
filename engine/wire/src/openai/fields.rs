//! A JSON object taken apart field by field, so that every refusal names its parameter.
//!
//! The values stay unparsed slices of the body until a field is asked for in its expected type. That keeps
//! memory near the size of the body (a tree of JSON values would multiply a 4 MiB list of token ids), and
//! bounds recursion: nothing nested is built.

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;
use thiserror::Error;

/// Fields that one JSON object may have; no request has nearly as many.
const MAX_FIELDS: usize = 64;

/// A request that cannot be served as it stands: HTTP 400.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct RequestError {
    /// What is wrong and what is accepted.
    pub message: String,
    /// The parameter at fault, as a path: `messages[0].content`.
    pub param: Option<String>,
}

impl RequestError {
    /// An error about one parameter.
    pub fn at(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), param: Some(param.into()) }
    }
}

/// The fields of one JSON object that nobody has asked for yet.
pub(super) struct Fields<'a> {
    /// Prefix of parameter names, `messages[3].` or empty.
    path: String,
    entries: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Fields<'a> {
    /// Takes a request body apart.
    pub fn of_body(body: &'a [u8]) -> Result<Self, RequestError> {
        let text = std::str::from_utf8(body).map_err(|error| RequestError {
            message: format!("The request body is not valid UTF-8 (at byte {})", error.valid_up_to()),
            param: None,
        })?;
        let raw: &RawValue = serde_json::from_str(text).map_err(|error| RequestError {
            message: format!("We could not parse the JSON body of your request: {error}"),
            param: None,
        })?;
        if kind_of(raw) != "an object" {
            let message = format!("The request body must be a JSON object, but it is {}", kind_of(raw));
            return Err(RequestError { message, param: None });
        }
        Self::of_object(raw, String::new())
    }

    /// Takes an object apart that stands at `path` (with its trailing dot) in the body.
    pub fn of_object(raw: &'a RawValue, path: String) -> Result<Self, RequestError> {
        let param = path.trim_end_matches('.').to_owned();
        if kind_of(raw) != "an object" {
            return Err(wrong_type(&param, "an object", raw));
        }
        let Entries::<MAX_FIELDS>(entries) = serde_json::from_str(raw.get()).map_err(|error| RequestError {
            message: format!("We could not read the JSON object of your request: {error}"),
            param: (!param.is_empty()).then_some(param),
        })?;
        Ok(Self { path, entries })
    }

    /// Full name of a field of this object.
    pub fn param(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// Takes a field unparsed; `null` counts as absent.
    pub fn take_raw(&mut self, name: &str) -> Option<&'a RawValue> {
        let index = self.entries.iter().position(|(key, _)| key == name)?;
        let (_, raw) = self.entries.swap_remove(index);
        (raw.get() != "null").then_some(raw)
    }

    /// Takes a field as `T`; `expected` is its type in words.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<Option<T>, RequestError> {
        let Some(raw) = self.take_raw(name) else { return Ok(None) };
        parse(raw, &self.param(name), expected).map(Some)
    }

    /// Takes a field that must be there.
    pub fn require<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<T, RequestError> {
        self.take(name, expected)?.ok_or_else(|| self.missing(name))
    }

    /// The error for a field that must be there and is not.
    pub fn missing(&self, name: &str) -> RequestError {
        let param = self.param(name);
        RequestError { message: format!("Missing required parameter: '{param}'."), param: Some(param) }
    }

    /// Takes a finite number within bounds; `allowed` says them in words.
    pub fn number(
        &mut self,
        name: &str,
        allowed: &str,
        within: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>, RequestError> {
        let Some(value) = self.take::<f64>(name, "a number")? else { return Ok(None) };
        if value.is_finite() && within(value) {
            return Ok(Some(value));
        }
        Err(self.out_of_bounds(name, &value.to_string(), allowed))
    }

    /// Takes an integer within bounds; `allowed` says them in words.
    pub fn integer(
        &mut self,
        name: &str,
        allowed: &str,
        within: impl Fn(i64) -> bool,
    ) -> Result<Option<i64>, RequestError> {
        let Some(value) = self.take::<i64>(name, "an integer")? else { return Ok(None) };
        if within(value) {
            return Ok(Some(value));
        }
        Err(self.out_of_bounds(name, &value.to_string(), allowed))
    }

    /// The error for a value outside its bounds.
    pub fn out_of_bounds(&self, name: &str, value: &str, allowed: &str) -> RequestError {
        let param = self.param(name);
        RequestError { message: format!("Invalid value for '{param}': {value} is not {allowed}."), param: Some(param) }
    }

    /// Takes a parameter that is known but not implemented: it passes only where its value changes nothing.
    pub fn unsupported(&mut self, name: &str, neutral: impl Fn(&str) -> bool) -> Result<(), RequestError> {
        let Some(raw) = self.take_raw(name) else { return Ok(()) };
        if neutral(raw.get()) {
            return Ok(());
        }
        let param = self.param(name);
        let message = format!("'{param}' is not supported yet with this value. Leave it out.");
        Err(RequestError { message, param: Some(param) })
    }

    /// Drops a parameter that has no influence on the answer here, whatever its value.
    pub fn ignore(&mut self, names: &[&str]) {
        for name in names {
            self.take_raw(name);
        }
    }

    /// Refuses whatever nobody took.
    pub fn finish(self) -> Result<(), RequestError> {
        let Some((name, _)) = self.entries.first() else { return Ok(()) };
        let param = self.param(&shorten(name));
        Err(RequestError { message: format!("Unrecognized request argument supplied: {param}"), param: Some(param) })
    }
}

/// Parses one value as `T`, or says what came instead of what was expected.
pub(super) fn parse<T: DeserializeOwned>(raw: &RawValue, param: &str, expected: &str) -> Result<T, RequestError> {
    serde_json::from_str(raw.get()).map_err(|_| wrong_type(param, expected, raw))
}

/// Splits a JSON array into its unparsed elements.
pub(super) fn elements<'a>(raw: &'a RawValue, param: &str, expected: &str) -> Result<Vec<&'a RawValue>, RequestError> {
    serde_json::from_str(raw.get()).map_err(|_| wrong_type(param, expected, raw))
}

/// The error for a value of the wrong type.
pub(super) fn wrong_type(param: &str, expected: &str, raw: &RawValue) -> RequestError {
    let got = match kind_of(raw) {
        kind @ ("a number" | "a boolean") => format!("{kind} ({})", shorten(raw.get())),
        kind => kind.to_owned(),
    };
    let message = format!("Invalid type for '{param}': expected {expected}, but got {got} instead.");
    RequestError { message, param: Some(param.to_owned()) }
}

/// Keys and unparsed values of an object that is a map: at most `MAX` of them.
pub(super) fn map_entries<'a, const MAX: usize>(
    raw: &'a RawValue,
    param: &str,
    expected: &str,
) -> Result<Vec<(Cow<'a, str>, &'a RawValue)>, RequestError> {
    if kind_of(raw) != "an object" {
        return Err(wrong_type(param, expected, raw));
    }
    let Entries::<MAX>(entries) = serde_json::from_str(raw.get())
        .map_err(|_| RequestError::at(param, format!("Invalid '{param}': more than {MAX} entries.")))?;
    Ok(entries)
}

/// Kind of a JSON value, told by its first byte.
pub(super) fn kind_of(raw: &RawValue) -> &'static str {
    match raw.get().trim_start().as_bytes().first() {
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// At most 64 characters of what a client sent, for use in a message.
pub(super) fn shorten(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(64) {
        Some((end, _)) => Cow::Owned(format!("{}...", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// Keys and unparsed values; of a repeated key the last counts, as in other JSON readers.
struct Entries<'a, const MAX: usize>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de, const MAX: usize> Deserialize<'de> for Entries<'de, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor::<MAX>)
    }
}

struct EntriesVisitor<const MAX: usize>;

impl<'de, const MAX: usize> Visitor<'de> for EntriesVisitor<MAX> {
    type Value = Entries<'de, MAX>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
        while let Some(Key(key)) = map.next_key()? {
            let value = map.next_value()?;
            if let Some(entry) = entries.iter_mut().find(|(known, _)| *known == key) {
                entry.1 = value;
                continue;
            }
            if entries.len() == MAX {
                return Err(serde::de::Error::custom(format!("more than {MAX} fields in one object")));
            }
            entries.push((key, value));
        }
        Ok(Entries(entries))
    }
}

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);
