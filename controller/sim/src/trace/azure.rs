//! Lines of the Azure LLM inference traces: `TIMESTAMP,ContextTokens,GeneratedTokens` and, for many models in one
//! file, a fourth column `Model`. Times are `2023-11-16 18:15:46.6805900`, with or without an offset from UTC.

use super::reader::{Fault, Row, at, tokens};
use super::repair::{Kind, Problem};

/// The first line, in lower case; a fourth column may follow.
pub(super) const HEADER: &str = "timestamp,contexttokens,generatedtokens";

/// Reads one line after the header. `columns` is the header's count.
pub(super) fn row(line: &str, columns: usize) -> Result<Row, Fault> {
    let mut fields = Vec::with_capacity(4);
    let mut column = 1;
    for field in line.split(',') {
        fields.push((column, field.trim()));
        column += field.chars().count() + 1;
    }
    if fields.len() != columns {
        let found = format!("{} columns where the header has {columns}", fields.len());
        return Err(at(fields.get(columns).map_or(column, |field| field.0), Problem::new(Kind::Columns, found)));
    }
    let (time_column, time) = fields[0];
    let at_ns = time_ns(time).ok_or_else(|| {
        at(time_column, Problem::new(Kind::Number, format!("`{time}` is not a time like 2023-11-16 18:15:46.68")))
    })?;
    let number =
        |index: usize, name: &str| tokens(fields[index].1, name).map_err(|problem| at(fields[index].0, problem));
    let (prompt_tokens, output_tokens) = (number(1, "ContextTokens")?, number(2, "GeneratedTokens")?);
    let zero_column = [(prompt_tokens, 1), (output_tokens, 2)].iter().find(|(n, _)| *n == 0).map(|(_, i)| fields[*i].0);
    let model = fields.get(3).map(|(_, model)| (*model).to_owned());
    if model.as_ref().is_some_and(String::is_empty) {
        return Err(at(fields[3].0, Problem::new(Kind::Columns, "no name of a model")));
    }
    Ok(Row { at_ns, prompt_tokens, output_tokens, model, prefix: Box::default(), zero_column })
}

/// Nanoseconds since 1970 of `YYYY-MM-DD HH:MM:SS[.fraction][Z|+HH:MM]`; none where it is no such time.
fn time_ns(text: &str) -> Option<i128> {
    let (date, rest) = text.split_once([' ', 'T'])?;
    let mut parts = date.split('-');
    let (year, month, day) = (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let zone = rest.find(['Z', '+', '-']).unwrap_or(rest.len());
    let (clock, offset_s) = (&rest[..zone], offset_s(&rest[zone..])?);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let mut clock = clock.split(':');
    let (hour, minute, second) = (digits(clock.next()?, 2)?, digits(clock.next()?, 2)?, digits(clock.next()?, 2)?);
    let sane = parts.next().is_none()
        && clock.next().is_none()
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second < 61;
    if !sane || fraction.is_empty() || fraction.len() > 9 {
        return None;
    }
    let fraction_ns = digits(fraction, fraction.len())? * 10i64.pow(9 - fraction.len() as u32);
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second - offset_s;
    Some(i128::from(seconds) * 1_000_000_000 + i128::from(fraction_ns))
}

/// `Z`, nothing, or `+HH:MM`, in seconds east of UTC.
fn offset_s(text: &str) -> Option<i64> {
    if text.is_empty() || text == "Z" {
        return Some(0);
    }
    let (hours, minutes) = text[1..].split_once(':')?;
    let offset_s = digits(hours, 2)? * 3600 + digits(minutes, 2)? * 60;
    Some(if text.starts_with('-') { -offset_s } else { offset_s })
}

/// A number of exactly so many digits.
fn digits(text: &str, count: usize) -> Option<i64> {
    (text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Days since 1970 of a date of the Gregorian calendar (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        let check = |text: &str, want: Option<i128>| assert_eq!(time_ns(text), want, "{text}");
        check("1970-01-01 00:00:00", Some(0));
        check("2023-11-16 18:15:46.6805900", Some(1_700_158_546_680_590_000));
        check("2024-05-10 00:00:00.009930+00:00", Some(1_715_299_200_009_930_000));
        check("2024-02-29T12:00:00Z", Some(1_709_208_000_000_000_000));
        check("2024-02-29T12:00:00+01:00", Some(1_709_204_400_000_000_000));
        check("2024-13-01 00:00:00", None);
        check("2024-01-01 00:00", None);
        check("2024-01-01 00:00:00.", None);
        check("12", None);
        check("", None);
    }
}
