//! What can be wrong with a line of a trace, and what a repair does about each.

use serde::Serialize;
use std::fmt;

/// A trace that could not be read. Columns count characters from 1, as editors do.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("{file}:{line}:{column}: {problem}; a repair mends such lines and counts them")]
    Line { file: String, line: u64, column: usize, problem: Problem },
    #[error("{file}: no requests in it")]
    Empty { file: String },
    #[error(
        "{file}:1:1: neither `TIMESTAMP,ContextTokens,GeneratedTokens[,Model]`, nor JSON lines, nor counts per bin"
    )]
    Unknown { file: String },
    #[error("{file}: more than {limit} {what}")]
    TooLarge { file: String, limit: u64, what: &'static str },
    #[error("{file}: {source}")]
    Read { file: String, source: std::io::Error },
}

/// One thing wrong with one line.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    pub kind: Kind,
    /// What was found, in words.
    pub found: String,
}

/// The kinds of what can be wrong, told apart because each is mended in its own way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Too few or too many columns, or no such field: the line is left out.
    Columns,
    /// Not a number, or not a time: the line is left out.
    Number,
    /// Below zero: the line is left out.
    Negative,
    /// Beyond what a request or a bin can be: the line is left out.
    Huge,
    /// A request of no tokens: counted as one token.
    Zero,
    /// The line before once more: left out.
    Duplicate,
    /// Earlier than the line before: put in its place.
    Disorder,
    /// Nothing for a long time, or a bin with no count: closed, or filled with the bin before.
    Gap,
}

impl Problem {
    pub(crate) fn new(kind: Kind, found: impl Into<String>) -> Self {
        Self { kind, found: found.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.found)
    }
}

/// How many lines were mended, by what was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Repairs {
    pub columns: u64,
    pub numbers: u64,
    pub negative: u64,
    pub huge: u64,
    pub zero: u64,
    pub duplicates: u64,
    pub disorder: u64,
    pub gaps: u64,
}

impl Repairs {
    /// Counts one.
    pub(crate) fn count(&mut self, kind: Kind) {
        let slot = match kind {
            Kind::Columns => &mut self.columns,
            Kind::Number => &mut self.numbers,
            Kind::Negative => &mut self.negative,
            Kind::Huge => &mut self.huge,
            Kind::Zero => &mut self.zero,
            Kind::Duplicate => &mut self.duplicates,
            Kind::Disorder => &mut self.disorder,
            Kind::Gap => &mut self.gaps,
        };
        *slot += 1;
    }

    /// Repairs in all.
    pub fn total(&self) -> u64 {
        let Self { columns, numbers, negative, huge, zero, duplicates, disorder, gaps } = self;
        columns + numbers + negative + huge + zero + duplicates + disorder + gaps
    }
}

impl fmt::Display for Repairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = [
            (self.columns, "wrong columns"),
            (self.numbers, "no number"),
            (self.negative, "negative"),
            (self.huge, "huge"),
            (self.zero, "zero length"),
            (self.duplicates, "duplicate"),
            (self.disorder, "out of order"),
            (self.gaps, "gap"),
        ];
        let told: Vec<String> =
            counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")).collect();
        f.write_str(&if told.is_empty() { "none".to_owned() } else { told.join(", ") })
    }
}
