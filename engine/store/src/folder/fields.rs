//! Fields of a JSON object, read with errors that name the file and the field. A null is as good as nothing.

use crate::CheckpointError;
use crate::config::SIZE_MAX;
use serde_json::{Map, Value};
use std::path::Path;

/// An object in a file.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    pub(super) file: &'a Path,
    /// Names of the objects around it, each with a dot behind.
    within: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(file: &'a Path, map: &'a Map<String, Value>) -> Self {
        Self { file, within: String::new(), map }
    }

    /// The error that a field's value is.
    pub(super) fn wrong(&self, field: &str, message: impl Into<String>) -> CheckpointError {
        let field = format!("{}{field}", self.within);
        CheckpointError::Field { path: self.file.to_owned(), field, message: message.into() }
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    fn read<T>(
        &self,
        field: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, CheckpointError> {
        let Some(value) = self.get(field) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| {
            let mut found = value.to_string();
            found.truncate(found.char_indices().nth(60).map_or(found.len(), |(at, _)| at));
            self.wrong(field, format!("{found} is not {expected}"))
        })
    }

    pub(super) fn object(&self, field: &str) -> Result<Option<Fields<'a>>, CheckpointError> {
        let map = self.read(field, "an object", Value::as_object)?;
        Ok(map.map(|map| Fields { file: self.file, within: format!("{}{field}.", self.within), map }))
    }

    pub(super) fn text(&self, field: &str) -> Result<Option<&'a str>, CheckpointError> {
        self.read(field, "a text", Value::as_str)
    }

    pub(super) fn array(&self, field: &str) -> Result<Option<&'a Vec<Value>>, CheckpointError> {
        self.read(field, "an array", Value::as_array)
    }

    pub(super) fn flag(&self, field: &str, otherwise: bool) -> Result<bool, CheckpointError> {
        Ok(self.read(field, "true or false", Value::as_bool)?.unwrap_or(otherwise))
    }

    /// A finite number.
    pub(super) fn number(&self, field: &str) -> Result<Option<f64>, CheckpointError> {
        self.read(field, "a number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    pub(super) fn positive(&self, field: &str) -> Result<Option<f64>, CheckpointError> {
        self.read(field, "a positive number", |value| value.as_f64().filter(|x| x.is_finite() && *x > 0.0))
    }

    /// A size, from 1 up.
    pub(super) fn size(&self, field: &str) -> Result<Option<usize>, CheckpointError> {
        let fits = |size: &u64| (1..=SIZE_MAX).contains(size);
        let size = self.read(field, &format!("a size from 1 to {SIZE_MAX}"), |value| value.as_u64().filter(fits))?;
        Ok(size.map(|size| size as usize))
    }

    pub(super) fn required_size(&self, field: &str) -> Result<usize, CheckpointError> {
        self.size(field)?.ok_or_else(|| self.wrong(field, "is missing"))
    }
}
