//! The hop's server-sent events, parsed as they arrive. The peer is a process that may die in the middle of
//! a line or, after its port was reused, be something else entirely: so lines are bounded, every byte is
//! checked, and whatever is not the hop's format is an error, never a skipped token.

use engine_wire::hop::HopEvent;
use thiserror::Error;

/// Longest line, bytes. A line carries the tokens of one step of one sequence, which is far less.
pub const LINE_LIMIT_BYTES: usize = 64 * 1024;

/// What one line says.
#[derive(Clone, Debug, PartialEq)]
pub enum HopItem {
    Event(HopEvent),
    /// `data: [DONE]`: nothing follows.
    Done,
}

/// Why a stream is not the hop's.
#[derive(Debug, Error, PartialEq)]
pub enum HopSyntaxError {
    #[error("a line of the event stream is longer than {LINE_LIMIT_BYTES} bytes")]
    LineTooLong,
    #[error("the event stream has a line that is no field: {0:?}")]
    UnknownField(String),
    #[error("an event of the stream is not a hop event: {0}")]
    BadEvent(String),
    #[error("the event stream goes on after [DONE]")]
    AfterDone,
}

/// Incremental parser. After an error it must be dropped.
#[derive(Debug, Default)]
pub struct HopParser {
    /// The line that has begun and not ended.
    line: Vec<u8>,
    done: bool,
}

impl HopParser {
    /// Appends what `chunk` completes to `items`. Items of the lines before a bad one are appended too.
    pub fn push(&mut self, mut chunk: &[u8], items: &mut Vec<HopItem>) -> Result<(), HopSyntaxError> {
        while let Some(end) = chunk.iter().position(|&byte| byte == b'\n') {
            let (head, rest) = (&chunk[..end], &chunk[end + 1..]);
            if self.line.len() + head.len() > LINE_LIMIT_BYTES {
                return Err(HopSyntaxError::LineTooLong);
            }
            if self.line.is_empty() {
                self.line_ended(head, items)?;
            } else {
                self.line.extend_from_slice(head);
                let line = std::mem::take(&mut self.line);
                self.line_ended(&line, items)?;
            }
            chunk = rest;
        }
        if self.line.len() + chunk.len() > LINE_LIMIT_BYTES {
            return Err(HopSyntaxError::LineTooLong);
        }
        self.line.extend_from_slice(chunk);
        Ok(())
    }

    fn line_ended(&mut self, line: &[u8], items: &mut Vec<HopItem>) -> Result<(), HopSyntaxError> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.starts_with(b":") {
            return Ok(());
        }
        let Some(data) = line.strip_prefix(b"data:") else {
            return unknown_field(line);
        };
        if self.done {
            return Err(HopSyntaxError::AfterDone);
        }
        let data = data.strip_prefix(b" ").unwrap_or(data);
        if data == b"[DONE]" {
            self.done = true;
            items.push(HopItem::Done);
            return Ok(());
        }
        let event = serde_json::from_slice(data).map_err(|error| HopSyntaxError::BadEvent(error.to_string()))?;
        items.push(HopItem::Event(event));
        Ok(())
    }
}

/// The other fields of the SSE standard mean nothing here and are passed over; anything else is garbage.
fn unknown_field(line: &[u8]) -> Result<(), HopSyntaxError> {
    let known = ["event", "id", "retry"]
        .iter()
        .any(|name| line.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.is_empty() || rest.starts_with(b":")));
    if known {
        return Ok(());
    }
    let shown = &line[..line.len().min(80)];
    Err(HopSyntaxError::UnknownField(String::from_utf8_lossy(shown).into_owned()))
}
