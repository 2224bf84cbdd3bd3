//! Line by line through a trace of whatever format: numbers the lines, judges each against the one before, and either
//! stops at the first problem or mends and counts it.

use super::repair::{Kind, Problem, Repairs, TraceError};
use super::{Arrival, Load, Trace, azure, counts, mooncake};
use crate::NS_PER_S;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

/// Longest line, bytes.
const LINE_MAX: u64 = 4 << 20;
/// Most lines of one file.
const LINES_MAX: u64 = 100_000_000;
/// Most models of one file.
const MODELS_MAX: u64 = 100_000;
/// Most tokens of one prompt or output.
const TOKENS_MAX: f64 = 100_000_000.0;
/// A silence over all models longer than this is a gap in the record, not in the traffic, ns.
const GAP_NS: u64 = 24 * 3600 * NS_PER_S;

/// How to read.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Mend and count what is wrong instead of stopping at it.
    pub repair: bool,
}

/// One request as a line has it.
pub(super) struct Row {
    pub at_ns: i128,
    pub prompt_tokens: u32,
    pub output_tokens: u32,
    pub model: Option<String>,
    pub prefix: Box<[u64]>,
    /// Where a length of 0 stands.
    pub zero_column: Option<usize>,
}

/// A problem at a column.
pub(super) struct Fault {
    column: usize,
    problem: Problem,
}

pub(super) fn at(column: usize, problem: Problem) -> Fault {
    Fault { column, problem }
}

/// A length in tokens from the text of a column.
pub(super) fn tokens(text: &str, name: &str) -> Result<u32, Problem> {
    tokens_of(text.parse().unwrap_or(f64::NAN), text, name)
}

/// A length in tokens; `text` is what stood there.
pub(super) fn tokens_of(number: f64, text: &str, name: &str) -> Result<u32, Problem> {
    let kind = match number {
        n if n < 0.0 => Kind::Negative,
        n if n > TOKENS_MAX => Kind::Huge,
        n if n.is_nan() || n.fract() != 0.0 => Kind::Number,
        n => return Ok(n as u32),
    };
    Err(Problem::new(kind, format!("{name} is `{text}`, not a whole number from 1 to {TOKENS_MAX:.0}")))
}

/// Reads a trace by its path.
pub fn read_file(path: &Path, options: Options) -> Result<Trace, TraceError> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|source| TraceError::Read { file: name.clone(), source })?;
    read(&name, file, options)
}

/// Reads a trace; `file` names it in errors. The format is told by the first line.
pub fn read(file: &str, source: impl Read, options: Options) -> Result<Trace, TraceError> {
    let failed = |source| TraceError::Read { file: file.to_owned(), source };
    let mut source = source;
    let mut magic = Vec::new();
    source.by_ref().take(2).read_to_end(&mut magic).map_err(failed)?;
    let gzipped = magic == [0x1f, 0x8b];
    let whole = Cursor::new(magic).chain(source);
    let plain: Box<dyn Read + '_> =
        if gzipped { Box::new(flate2::read::MultiGzDecoder::new(whole)) } else { Box::new(whole) };
    let mut lines = Lines { file, source: BufReader::new(plain), number: 0, options, repairs: Repairs::default() };
    let Some(first) = lines.first()? else { return Err(TraceError::Empty { file: file.to_owned() }) };
    if first.to_lowercase().replace(' ', "").starts_with(azure::HEADER) {
        let columns = first.split(',').count();
        return lines.requests(None, |line| azure::row(line, columns));
    }
    if first.starts_with('{') {
        return lines.requests(Some(first), mooncake::row);
    }
    if first.starts_with('#') || counts::count(&first).is_ok() {
        return lines.counts(first);
    }
    Err(TraceError::Unknown { file: file.to_owned() })
}

struct Lines<'a, R> {
    file: &'a str,
    source: BufReader<R>,
    number: u64,
    options: Options,
    repairs: Repairs,
}

impl<R: Read> Lines<'_, R> {
    /// The first line that holds something.
    fn first(&mut self) -> Result<Option<String>, TraceError> {
        while let Some(line) = self.next()? {
            let line = line.trim_start_matches('\u{feff}').trim();
            if !line.is_empty() {
                return Ok(Some(line.to_owned()));
            }
        }
        Ok(None)
    }

    /// The next line without its end, be that LF or CRLF.
    fn next(&mut self) -> Result<Option<String>, TraceError> {
        let too_large = |limit, what| TraceError::TooLarge { file: self.file.to_owned(), limit, what };
        let mut line = Vec::new();
        let read = self.source.by_ref().take(LINE_MAX + 1).read_until(b'\n', &mut line);
        match read.map_err(|source| TraceError::Read { file: self.file.to_owned(), source })? {
            0 => return Ok(None),
            length if length as u64 > LINE_MAX => return Err(too_large(LINE_MAX, "bytes in one line")),
            _ => {}
        }
        self.number += 1;
        if self.number > LINES_MAX {
            return Err(too_large(LINES_MAX, "lines"));
        }
        let end = line.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |at| at + 1);
        line.truncate(end);
        Ok(Some(String::from_utf8_lossy(&line).into_owned()))
    }

    /// Counts a problem, or stops at it.
    fn wrong(&mut self, fault: Fault) -> Result<(), TraceError> {
        if self.options.repair {
            self.repairs.count(fault.problem.kind);
            return Ok(());
        }
        let Fault { column, problem } = fault;
        Err(TraceError::Line { file: self.file.to_owned(), line: self.number, column, problem })
    }

    fn requests(
        mut self,
        first: Option<String>,
        parse: impl Fn(&str) -> Result<Row, Fault>,
    ) -> Result<Trace, TraceError> {
        let mut names: BTreeMap<String, u32> = BTreeMap::new();
        let mut rows: Vec<(i128, Arrival)> = Vec::new();
        let mut latest_ns = i128::MIN;
        let mut pending = first;
        let mut before = String::new();
        loop {
            let next = pending.take();
            let Some(line) = (if next.is_some() { next } else { self.next()? }) else { break };
            if line.trim().is_empty() {
                continue;
            }
            let row = match parse(&line) {
                Ok(row) => row,
                Err(fault) => {
                    self.wrong(fault)?;
                    continue;
                }
            };
            if line == before {
                self.wrong(at(1, Problem::new(Kind::Duplicate, "the line before once more")))?;
                continue;
            }
            before = line;
            if let Some(column) = row.zero_column {
                self.wrong(at(column, Problem::new(Kind::Zero, "a request of 0 tokens")))?;
            }
            if row.at_ns < latest_ns {
                let back_s = (latest_ns - row.at_ns) as f64 / NS_PER_S as f64;
                self.wrong(at(1, Problem::new(Kind::Disorder, format!("{back_s} s earlier than a line above"))))?;
            }
            latest_ns = latest_ns.max(row.at_ns);
            let count = names.len() as u32;
            let model = *names.entry(row.model.unwrap_or_else(|| "model".to_owned())).or_insert(count);
            if names.len() as u64 > MODELS_MAX {
                return Err(TraceError::TooLarge { file: self.file.to_owned(), limit: MODELS_MAX, what: "models" });
            }
            let arrival = Arrival {
                at_ns: 0,
                model,
                prompt_tokens: row.prompt_tokens.max(1),
                output_tokens: row.output_tokens.max(1),
                prefix: row.prefix,
            };
            rows.push((row.at_ns, arrival));
            self.gap(&rows)?;
        }
        self.in_order(names, rows)
    }

    /// Judges the silence before the last row where the file is in order so far; one out of order is judged when sorted.
    fn gap(&mut self, rows: &[(i128, Arrival)]) -> Result<(), TraceError> {
        let [.., (before_ns, _), (after_ns, _)] = rows else { return Ok(()) };
        let silence_ns = after_ns - before_ns;
        if silence_ns <= i128::from(GAP_NS) || self.options.repair {
            return Ok(());
        }
        let hours = silence_ns / (3600 * i128::from(NS_PER_S));
        self.wrong(at(1, Problem::new(Kind::Gap, format!("nothing for {hours} hours before this"))))
    }

    /// Sorts, closes gaps, counts time from the first request, and numbers the models by name.
    fn in_order(mut self, names: BTreeMap<String, u32>, mut rows: Vec<(i128, Arrival)>) -> Result<Trace, TraceError> {
        rows.sort_by_key(|(at_ns, _)| *at_ns);
        if rows.is_empty() {
            return Err(TraceError::Empty { file: self.file.to_owned() });
        }
        let mut rank = vec![0; names.len()];
        for (at, number) in names.values().enumerate() {
            rank[*number as usize] = at as u32;
        }
        let mut before_ns = rows[0].0;
        let mut at_ns = 0;
        let mut arrivals = Vec::with_capacity(rows.len());
        for (time_ns, mut arrival) in rows {
            let silence_ns = u64::try_from(time_ns - before_ns).unwrap_or(u64::MAX);
            if silence_ns > GAP_NS {
                self.repairs.count(Kind::Gap);
            } else {
                at_ns += silence_ns;
            }
            before_ns = time_ns;
            arrival.at_ns = at_ns;
            arrival.model = rank[arrival.model as usize];
            arrivals.push(arrival);
        }
        Ok(Trace::of_requests(names.into_keys().collect(), arrivals, self.repairs))
    }

    fn counts(mut self, first: String) -> Result<Trace, TraceError> {
        let mut bin_ns = 10 * NS_PER_S;
        let mut counts: Vec<u64> = Vec::new();
        // An empty line is a bin without a count, unless nothing but the end of the file follows.
        let mut missing = 0;
        let mut pending = Some(first);
        loop {
            let next = pending.take();
            let Some(line) = (if next.is_some() { next } else { self.next()? }) else { break };
            if let Some(comment) = line.strip_prefix('#') {
                bin_ns = counts::bin_ns(comment).unwrap_or(bin_ns);
                continue;
            }
            let count = match counts::count(&line) {
                Ok(Some(count)) => count,
                Ok(None) => {
                    missing += 1;
                    continue;
                }
                Err(fault) => {
                    self.wrong(fault)?;
                    continue;
                }
            };
            for _ in 0..std::mem::take(&mut missing) {
                self.wrong(at(1, Problem::new(Kind::Gap, "a line without a count before this")))?;
                counts.push(counts.last().copied().unwrap_or(0));
            }
            counts.push(count);
        }
        if counts.iter().all(|count| *count == 0) {
            return Err(TraceError::Empty { file: self.file.to_owned() });
        }
        let duration_ns = bin_ns.saturating_mul(counts.len() as u64);
        let load = Load::Counts { bin_ns, counts };
        Ok(Trace { models: vec!["model".to_owned()], load, duration_ns, repairs: self.repairs })
    }
}
