//! Tables of counts: one number a line, the requests that arrived in one bin of time, after a comment that says how
//! long a bin is (`# requests per 600 s bin`).

use super::reader::{Fault, at};
use super::repair::{Kind, Problem};

/// Most requests of one bin that are believed.
const MOST: u64 = 1_000_000_000;

/// The count of one line; none for one that holds nothing.
pub(super) fn count(line: &str) -> Result<Option<u64>, Fault> {
    let text = line.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if let Some(comma) = line.find(',') {
        return Err(at(line[..comma].chars().count() + 1, Problem::new(Kind::Columns, "more than one column")));
    }
    let column = line.chars().take_while(|c| c.is_whitespace()).count() + 1;
    let number: f64 =
        text.parse().map_err(|_| at(column, Problem::new(Kind::Number, format!("`{text}` is not a count"))))?;
    let kind = match number {
        n if n < 0.0 => Kind::Negative,
        n if n > MOST as f64 => Kind::Huge,
        n if n.is_nan() || n.fract() != 0.0 => Kind::Number,
        n => return Ok(Some(n as u64)),
    };
    Err(at(column, Problem::new(kind, format!("`{text}` is not a count from 0 to {MOST}"))))
}

/// The length of a bin, ns, as a comment tells it.
pub(super) fn bin_ns(comment: &str) -> Option<u64> {
    let (_, rest) = comment.split_once(" per ")?;
    let (number, rest) = rest.trim_start().split_once(' ')?;
    let seconds: f64 = number.parse().ok()?;
    let unit_s = match rest.split_whitespace().next()? {
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    let bin_s = seconds * unit_s;
    (0.001..=1e6).contains(&bin_s).then(|| crate::ns(bin_s))
}
