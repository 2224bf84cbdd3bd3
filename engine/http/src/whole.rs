//! Whole answers: the token streams collected, then one JSON body.

use crate::ApiError;
use crate::access::AccessGuard;
use crate::backend::{StreamEvent, TokenStream};
use crate::choice::{Choice, Piece};
use crate::logprobs::{chat_logprobs, completion_logprobs};
use crate::sse::{Api, Envelope, chat_finish};
use crate::tools::put_together;
use engine_wire::hop::{FinishReason, HopEvent};
use engine_wire::openai::{
    ChatChoice, ChatCompletion, ChatReply, CompletionChoice, FunctionReply, TextCompletion, ToolCallReply, Usage,
};
use futures_util::future::try_join_all;
use serde_json::value::{RawValue, to_raw_value};

/// One complete output.
struct Output {
    piece: Piece,
    finish: FinishReason,
    called: bool,
    output_tokens: u32,
    cached_tokens: u32,
}

/// Runs all streams to their end and writes the answer. Counts go into the access record.
pub(crate) async fn collect(
    envelope: &Envelope,
    parts: Vec<(TokenStream, Choice)>,
    access: &mut AccessGuard,
) -> Result<Box<RawValue>, ApiError> {
    let outputs = try_join_all(parts.into_iter().map(|(stream, choice)| drain(stream, choice))).await?;
    let record = &mut access.record;
    record.output_tokens = outputs.iter().map(|output| output.output_tokens).sum();
    record.cached_tokens = outputs
        .iter()
        .enumerate()
        .filter(|(index, _)| envelope.counts_prompt(*index))
        .map(|(_, output)| output.cached_tokens)
        .sum();
    record.finish = outputs.last().map(|output| output.finish);
    let usage = Usage::new(record.prompt_tokens, record.output_tokens, record.cached_tokens);
    let answer = match envelope.api {
        Api::Chat => to_raw_value(&chat_completion(envelope, outputs, usage)),
        Api::Completion => to_raw_value(&TextCompletion {
            id: &envelope.id,
            object: "text_completion",
            created: envelope.created,
            model: &envelope.model,
            choices: &Vec::from_iter(
                outputs.iter().enumerate().map(|(index, output)| completion_choice(index, output)),
            ),
            usage: Some(Some(usage)),
        }),
    };
    answer.map_err(|error| ApiError::Internal { message: error.to_string() })
}

fn chat_completion(envelope: &Envelope, outputs: Vec<Output>, usage: Usage) -> ChatCompletion<'_> {
    let choices = outputs.into_iter().enumerate().map(|(index, output)| chat_choice(index, output)).collect();
    ChatCompletion {
        id: &envelope.id,
        object: "chat.completion",
        created: envelope.created,
        model: &envelope.model,
        choices,
        usage,
    }
}

fn chat_choice(index: usize, output: Output) -> ChatChoice {
    let Piece { text, calls, scores } = output.piece;
    let reply = |call: crate::tools::Call| ToolCallReply {
        id: call.id,
        kind: "function",
        function: FunctionReply { name: call.name, arguments: call.arguments },
    };
    let tool_calls: Vec<ToolCallReply> = put_together(calls).into_iter().map(reply).collect();
    let content = (tool_calls.is_empty() || !text.is_empty()).then_some(text);
    ChatChoice {
        index: index as u32,
        logprobs: chat_logprobs(&scores),
        message: ChatReply { role: "assistant", content, refusal: None, tool_calls },
        finish_reason: chat_finish(output.finish, output.called),
    }
}

fn completion_choice(index: usize, output: &Output) -> CompletionChoice<'_> {
    CompletionChoice {
        text: &output.piece.text,
        index: index as u32,
        logprobs: completion_logprobs(&output.piece.scores),
        finish_reason: Some(output.finish),
    }
}

async fn drain(mut stream: TokenStream, mut choice: Choice) -> Result<Output, ApiError> {
    let mut piece = Piece::default();
    loop {
        let broken = || ApiError::Unavailable {
            message: "The answer broke off before it was complete".to_owned(),
            retry_after_s: None,
        };
        let event = stream.events.recv().await.ok_or_else(broken)??;
        let (finish, cached_tokens) = match event {
            StreamEvent::Waiting => continue,
            StreamEvent::Hop(HopEvent::Tokens(tokens)) => match choice.push(&tokens, Vec::new(), &mut piece) {
                None => continue,
                Some(reason) => (reason, 0),
            },
            StreamEvent::Hop(HopEvent::Scored { tokens, logprobs }) => {
                match choice.push(&tokens, logprobs, &mut piece) {
                    None => continue,
                    Some(reason) => (reason, 0),
                }
            }
            StreamEvent::Hop(HopEvent::Finished { reason, cached_tokens }) => {
                (choice.finish(reason, &mut piece), cached_tokens)
            }
            StreamEvent::Hop(HopEvent::Failed { message, .. }) => {
                return Err(ApiError::Unavailable { message, retry_after_s: None });
            }
        };
        let (called, output_tokens) = (choice.has_called(), choice.output_tokens());
        return Ok(Output { piece, finish, called, output_tokens, cached_tokens });
    }
}
