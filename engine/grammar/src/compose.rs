//! Constraints put together of fixed text and JSON: what the call of a tool must look like.

use crate::GrammarError;
use crate::compile::{literal, schema_value};
use engine_wire::constraint::{Constraint, JsonConstraint};
use std::fmt::Write;

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// This text exactly.
    Text(String),
    /// A JSON value that a schema allows.
    Json(JsonConstraint),
}

/// An output that is one of several sequences of parts, or several such sequences one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// Each is a sequence of parts; at least one.
    pub alternatives: Vec<Vec<Part>>,
    /// How often alternatives follow each other at most: at least once.
    pub most: u32,
    /// What stands between two of them.
    pub separator: String,
}

impl Template {
    /// Exactly one of these.
    pub fn one_of(alternatives: Vec<Vec<Part>>) -> Self {
        Self { alternatives, most: 1, separator: String::new() }
    }

    /// The constraint that says so. Schemas must be JSON; whether they can be met is for [`check`](crate::check).
    pub fn constraint(&self) -> Result<Constraint, GrammarError> {
        let mut rules = String::new();
        let mut names = Vec::with_capacity(self.alternatives.len());
        for (index, parts) in self.alternatives.iter().enumerate() {
            let sequence: Result<Vec<String>, _> = parts.iter().map(expression).collect();
            names.push(format!("item{index}"));
            // Writing to a string cannot fail.
            let _ = writeln!(rules, "item{index}: {}", sequence?.join(" "));
        }
        let more = self.most.saturating_sub(1);
        let separator = if self.separator.is_empty() { String::new() } else { literal(&self.separator) + " " };
        let start = match more {
            0 => "start: item".to_owned(),
            more => format!("start: item ({separator}item){{0,{more}}}"),
        };
        Ok(Constraint::Lark(format!("{start}\nitem: {}\n{rules}", names.join(" | "))))
    }
}

fn expression(part: &Part) -> Result<String, GrammarError> {
    match part {
        Part::Text(text) => Ok(literal(text)),
        Part::Json(json) => Ok(format!("%json {}", schema_value(json)?)),
    }
}
