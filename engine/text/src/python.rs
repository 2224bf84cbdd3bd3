//! The two pieces of Python that chat templates see through: `json.dumps` and `strftime` (UTC).

use serde_json::Value;
use std::fmt::Write;

/// `json.dumps(value, ensure_ascii=False, indent=indent)`: blanks after `,` and `:`, unlike `serde_json`.
pub fn json_dumps(value: &Value, indent: Option<usize>) -> String {
    let mut out = String::new();
    write_json(value, indent, 0, &mut out);
    out
}

fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) {
    let separator = if indent.is_some() { "," } else { ", " };
    match value {
        Value::Array(items) if !items.is_empty() => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                out.push_str(if index > 0 { separator } else { "" });
                break_line(indent, depth + 1, out);
                write_json(item, indent, depth + 1, out);
            }
            break_line(indent, depth, out);
            out.push(']');
        }
        Value::Object(entries) if !entries.is_empty() => {
            out.push('{');
            for (index, (key, item)) in entries.iter().enumerate() {
                out.push_str(if index > 0 { separator } else { "" });
                break_line(indent, depth + 1, out);
                let _ = write!(out, "{}: ", Value::from(key.as_str()));
                write_json(item, indent, depth + 1, out);
            }
            break_line(indent, depth, out);
            out.push('}');
        }
        Value::Number(number) if number.is_f64() => out.push_str(&float(number.as_f64().unwrap_or(0.0))),
        // Other scalars, `[]` and `{}` are written alike by both.
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

/// `repr(number)`: the shortest digits that are this number, as Rust finds them too, with an exponent of two digits at
/// least where it is below -4 or above 15.
fn float(number: f64) -> String {
    let scientific = format!("{number:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent @ (..=-5 | 16..)) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}

fn break_line(indent: Option<usize>, depth: usize, out: &mut String) {
    if let Some(indent) = indent {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent * depth));
    }
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// `strftime` of a Unix time in UTC and the C locale; directives that are not known stay as they are.
pub fn strftime(format: &str, unix_s: u64) -> String {
    let (year, month, day) = civil_from_days((unix_s / 86_400) as i64);
    let (hour, minute, second) = (unix_s / 3600 % 24, unix_s / 60 % 60, unix_s % 60);
    let weekday = DAYS[((unix_s / 86_400 + 4) % 7) as usize];
    let month_name = MONTHS[(month - 1) as usize];
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let _ = match characters.next() {
            Some('Y') => write!(out, "{year}"),
            Some('y') => write!(out, "{:02}", year % 100),
            Some('m') => write!(out, "{month:02}"),
            Some('d') => write!(out, "{day:02}"),
            Some('e') => write!(out, "{day:2}"),
            Some('H') => write!(out, "{hour:02}"),
            Some('I') => write!(out, "{:02}", (hour + 11) % 12 + 1),
            Some('p') => write!(out, "{}", if hour < 12 { "AM" } else { "PM" }),
            Some('M') => write!(out, "{minute:02}"),
            Some('S') => write!(out, "{second:02}"),
            Some('B') => write!(out, "{month_name}"),
            Some('b' | 'h') => write!(out, "{}", &month_name[..3]),
            Some('A') => write!(out, "{weekday}"),
            Some('a') => write!(out, "{}", &weekday[..3]),
            Some('F') => write!(out, "{year}-{month:02}-{day:02}"),
            Some('T') => write!(out, "{hour:02}:{minute:02}:{second:02}"),
            Some('%') => write!(out, "%"),
            Some(other) => write!(out, "%{other}"),
            None => write!(out, "%"),
        };
    }
    out
}

/// Year, month and day of a count of days since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`).
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
    let month = (if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 }) as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_pythons() {
        // Expected values from Python's datetime.
        for (unix_s, expected) in [
            (0, "Thu 01 Jan 1970 00:00:00 12AM"),
            (951_782_399, "Mon 28 Feb 2000 23:59:59 11PM"),
            (951_825_600, "Tue 29 Feb 2000 12:00:00 12PM"),
            (4_107_542_400, "Mon 01 Mar 2100 00:00:00 12AM"),
        ] {
            assert_eq!(strftime("%a %d %b %Y %T %I%p", unix_s), expected);
        }
        assert_eq!(strftime("100%% %q %", 0), "100% %q %");
    }

    #[test]
    fn json_is_pythons() {
        let value = serde_json::json!({"a": [1, 2.5, "x\n\"é"], "b": {}, "c": null});
        assert_eq!(json_dumps(&value, None), r#"{"a": [1, 2.5, "x\n\"é"], "b": {}, "c": null}"#);
        // Expected values from Python's json.
        let numbers = serde_json::json!([1.0, -0.5, 1e16, 123456789012345680.0, 1e-5, 0.0001, 1e100, 2.5e-7, 1e15]);
        assert_eq!(
            json_dumps(&numbers, None),
            "[1.0, -0.5, 1e+16, 1.2345678901234568e+17, 1e-05, 0.0001, 1e+100, 2.5e-07, 1000000000000000.0]"
        );
        assert_eq!(
            json_dumps(&serde_json::json!({"a": [1, true]}), Some(2)),
            "{\n  \"a\": [\n    1,\n    true\n  ]\n}"
        );
    }
}
