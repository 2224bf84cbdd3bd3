//! JSON checked byte by byte, so that a call is known to be whole, or to be broken, at the byte that makes it so.

/// Deepest nesting; serde_json reads no deeper either.
const DEPTH_MAX: usize = 120;

/// What a byte does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    More,
    /// It ends the value.
    Complete,
    /// It cannot stand here.
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    KeyOrEnd,
    Key,
    Colon,
    CommaOrEnd,
    Text {
        key: bool,
    },
    Escape {
        key: bool,
    },
    Hex {
        key: bool,
        left: u8,
    },
    /// The rest of `true`, `false` or `null`.
    Word(&'static [u8]),
    Number(Number),
}

/// What came last in a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Digits,
    Dot,
    Fraction,
    E,
    Sign,
    Exponent,
}

/// Reads one JSON object.
#[derive(Clone, Debug)]
pub(crate) struct Scanner {
    /// Open brackets.
    open: Vec<u8>,
    expect: Expect,
}

impl Scanner {
    pub fn new() -> Self {
        Self { open: Vec::new(), expect: Expect::Value }
    }

    /// Brackets that are open.
    pub fn depth(&self) -> usize {
        self.open.len()
    }

    /// Takes the next byte. Nothing may follow after the last bracket is closed.
    pub fn push(&mut self, byte: u8) -> Step {
        if let Expect::Number(number) = self.expect {
            match next_of_number(number, byte) {
                Some(number) => {
                    self.expect = Expect::Number(number);
                    return Step::More;
                }
                None if matches!(number, Number::Minus | Number::Dot | Number::E | Number::Sign) => return Step::Bad,
                None => self.expect = Expect::CommaOrEnd,
            }
        }
        match self.advance(byte) {
            None => Step::Bad,
            Some(()) if self.open.is_empty() => Step::Complete,
            Some(()) => Step::More,
        }
    }

    fn advance(&mut self, byte: u8) -> Option<()> {
        use Expect::*;
        self.expect = match (self.expect, byte) {
            (Text { key }, b'"') => {
                if key {
                    Colon
                } else {
                    CommaOrEnd
                }
            }
            (Text { key }, b'\\') => Escape { key },
            (Text { .. }, 0..=0x1f) => return None,
            (same @ Text { .. }, _) => same,
            (Escape { key }, b'u') => Hex { key, left: 4 },
            (Escape { key }, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Text { key },
            (Hex { key, left }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => match left {
                1 => Text { key },
                _ => Hex { key, left: left - 1 },
            },
            (Word(rest), byte) if rest.first() == Some(&byte) => match &rest[1..] {
                [] => CommaOrEnd,
                rest => Word(rest),
            },
            (Escape { .. } | Hex { .. } | Word(_), _) => return None,
            (same, b' ' | b'\t' | b'\n' | b'\r') => same,
            (KeyOrEnd | Key, b'"') => Text { key: true },
            (Colon, b':') => Value,
            (CommaOrEnd, b',') => match self.open.last() {
                Some(b'{') => Key,
                _ => Value,
            },
            (KeyOrEnd | CommaOrEnd, b'}') if self.open.last() == Some(&b'{') => self.close(),
            (ValueOrEnd | CommaOrEnd, b']') if self.open.last() == Some(&b'[') => self.close(),
            (Value | ValueOrEnd, byte) => self.begin(byte)?,
            _ => return None,
        };
        Some(())
    }

    fn begin(&mut self, byte: u8) -> Option<Expect> {
        if self.open.is_empty() && byte != b'{' {
            return None;
        }
        Some(match byte {
            b'{' | b'[' if self.open.len() < DEPTH_MAX => {
                self.open.push(byte);
                if byte == b'{' { Expect::KeyOrEnd } else { Expect::ValueOrEnd }
            }
            b'"' => Expect::Text { key: false },
            b't' => Expect::Word(b"rue"),
            b'f' => Expect::Word(b"alse"),
            b'n' => Expect::Word(b"ull"),
            b'-' => Expect::Number(Number::Minus),
            b'0' => Expect::Number(Number::Zero),
            b'1'..=b'9' => Expect::Number(Number::Digits),
            _ => return None,
        })
    }

    fn close(&mut self) -> Expect {
        self.open.pop();
        Expect::CommaOrEnd
    }
}

fn next_of_number(number: Number, byte: u8) -> Option<Number> {
    use Number::*;
    match (number, byte) {
        (Minus, b'0') => Some(Zero),
        (Minus, b'1'..=b'9') | (Digits, b'0'..=b'9') => Some(Digits),
        (Zero | Digits, b'.') => Some(Dot),
        (Zero | Digits | Fraction, b'e' | b'E') => Some(E),
        (Dot | Fraction, b'0'..=b'9') => Some(Fraction),
        (E, b'+' | b'-') => Some(Sign),
        (E | Sign | Exponent, b'0'..=b'9') => Some(Exponent),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes taken until the value is complete, if it ever is; the byte that is wrong, if one is.
    fn scan(text: &str) -> Result<Option<usize>, usize> {
        let mut scanner = Scanner::new();
        for (at, byte) in text.bytes().enumerate() {
            match scanner.push(byte) {
                Step::More => {}
                Step::Complete => return Ok(Some(at + 1)),
                Step::Bad => return Err(at),
            }
        }
        Ok(None)
    }

    #[test]
    fn a_value_ends_or_breaks_at_a_byte() {
        for (text, expected) in [
            (r#"{"a": [1, -0.5e+3, true, null, "\u00e9\n\""], "b": {}} x"#, Ok(Some(54))),
            (r#"{"a": "#, Ok(None)),
            (r#"{bad"#, Err(1)),
            (r#"{"a": tru}"#, Err(9)),
            (r#"{"a": 01}"#, Err(7)),
            (r#"{"a": 1.}"#, Err(8)),
            (r#"{"a": -}"#, Err(7)),
            (r#"{"a" 1}"#, Err(5)),
            (r#"{"a": 1,}"#, Err(8)),
            (r#"{"a": [1}"#, Err(8)),
            ("{\"a\n\": 1}", Err(3)),
            (r#"{"a": "\x"}"#, Err(8)),
            ("[1]", Err(0)),
        ] {
            assert_eq!(scan(text), expected, "{text}");
        }
        assert_eq!(scan(&"{\"a\":[".repeat(61)), Err(360));
    }

    fn is_json(text: &str) -> bool {
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).is_ok()
    }

    proptest! {
        /// It takes as whole what serde_json reads, and nothing else.
        #[test]
        fn agrees_with_serde_json(text in r#"\{("a"|[{}\[\],:"0-9eE+.\\ unltrefas-]){0,12}\}"#) {
            prop_assert_eq!(scan(&text) == Ok(Some(text.len())), is_json(&text), "{}", text);
        }
    }
}
