//! Calls of tools in what a model says: told from text while it comes, in the form that the model writes.

mod constrain;
mod head;
mod json;
mod parser;

pub(crate) use constrain::constraint;
pub(crate) use parser::{Parser, Reading};

use crate::context::random_u64;
use engine_text::TextModel;
use engine_wire::openai::ToolOptions;

/// What a piece of text adds to the calls of an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallDelta {
    Begin {
        index: u32,
        id: String,
        name: String,
    },
    /// The next text of the arguments.
    Arguments {
        index: u32,
        text: String,
    },
    /// It was no call after all: its text is content. Never in streams, where it is out already.
    Withdrawn {
        index: u32,
    },
}

impl Reading {
    /// How an output of a request with these tools is read; none where there are none to call.
    pub fn of(tools: &ToolOptions, text: &TextModel, streamed: bool) -> Option<Self> {
        let offered = tools.offered();
        (!offered.is_empty()).then(|| Self {
            format: text.tool_format(),
            names: offered.iter().map(|tool| tool.name.clone()).collect(),
            single: tools.single,
            streamed,
            salt: random_u64(),
        })
    }
}

/// A call put together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub id: String,
    pub name: String,
    pub arguments: String,
}

/// The calls that all deltas of an output come to.
pub(crate) fn put_together(deltas: Vec<CallDelta>) -> Vec<Call> {
    let mut calls: Vec<Option<Call>> = Vec::new();
    for delta in deltas {
        match delta {
            CallDelta::Begin { id, name, .. } => calls.push(Some(Call { id, name, arguments: String::new() })),
            CallDelta::Arguments { index, text } => {
                if let Some(Some(call)) = calls.get_mut(index as usize) {
                    call.arguments.push_str(&text);
                }
            }
            CallDelta::Withdrawn { index } => {
                if let Some(call) = calls.get_mut(index as usize) {
                    *call = None;
                }
            }
        }
    }
    calls.into_iter().flatten().collect()
}
