//! Streamed answers: server-sent events, one write for each event of the backend.
//!
//! A hand-written `Stream` and not a task with a channel, so that a slow client slows its own sequence through the
//! bounded channels below, and dropping the connection drops the token streams, which cancels the work.

use crate::ApiError;
use crate::access::{AccessGuard, AccessOutcome};
use crate::backend::{StreamEvent, TokenStream};
use crate::choice::{Choice, Piece};
use crate::clock::unix_s;
use crate::logprobs::{chat_logprobs, completion_logprobs};
use crate::tools::CallDelta;
use bytes::Bytes;
use engine_wire::TokenId;
use engine_wire::hop::{FinishReason, HopEvent, TokenLogprobs};
use engine_wire::openai::{
    ChatChunk, ChatChunkChoice, ChatDelta, ChatFinish, CompletionChoice, FunctionDelta, GenerateOptions,
    TextCompletion, ToolCallDelta, Usage,
};
use futures_util::Stream;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::time::Sleep;

pub(crate) const WAITING: &[u8] = b": waiting for an instance\n\n";
pub(crate) const DONE: &str = "data: [DONE]\n\n";

/// Which API's words are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Api {
    Chat,
    Completion,
}

impl Api {
    /// Where its requests are sent to.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/v1/chat/completions",
            Self::Completion => "/v1/completions",
        }
    }
}

/// What all events of one answer have in common.
pub(crate) struct Envelope {
    pub api: Api,
    pub id: String,
    pub created: u64,
    pub model: String,
    pub include_usage: bool,
    /// Choices for each prompt: those of the first prompt come first.
    pub choices_per_prompt: usize,
}

impl Envelope {
    pub fn new(api: Api, request_id: &str, options: &GenerateOptions) -> Self {
        let prefix = if api == Api::Chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{prefix}-{}", request_id.strip_prefix("req-").unwrap_or(request_id));
        Self {
            api,
            id,
            created: unix_s(),
            model: options.model.clone(),
            include_usage: options.include_usage,
            choices_per_prompt: options.n.max(1) as usize,
        }
    }

    /// Whether this choice stands for its prompt in counts of prompt tokens: a prompt counts once, however many
    /// choices it has.
    pub fn counts_prompt(&self, index: usize) -> bool {
        index.is_multiple_of(self.choices_per_prompt)
    }

    /// `usage: null` on every chunk but the last, when usage was asked for.
    fn no_usage(&self) -> Option<Option<Usage>> {
        self.include_usage.then_some(None)
    }

    fn chat_event(&self, choices: &[ChatChunkChoice<'_>], usage: Option<Option<Usage>>, out: &mut String) {
        let object = "chat.completion.chunk";
        write_event(
            &ChatChunk { id: &self.id, object, created: self.created, model: &self.model, choices, usage },
            out,
        );
    }

    fn completion_event(&self, choices: &[CompletionChoice<'_>], usage: Option<Option<Usage>>, out: &mut String) {
        let object = "text_completion";
        let event = TextCompletion { id: &self.id, object, created: self.created, model: &self.model, choices, usage };
        write_event(&event, out);
    }

    /// A chat choice's opening: who speaks.
    fn write_role(&self, index: u32, out: &mut String) {
        let delta = ChatDelta { role: Some("assistant"), content: Some(""), ..ChatDelta::default() };
        self.chat_event(&[ChatChunkChoice { index, delta, logprobs: None, finish_reason: None }], self.no_usage(), out);
    }

    fn write_piece(&self, index: u32, piece: &Piece, out: &mut String) {
        match self.api {
            Api::Chat => {
                if !piece.text.is_empty() || !piece.scores.is_empty() {
                    let delta = ChatDelta { content: Some(&piece.text), ..ChatDelta::default() };
                    let logprobs = chat_logprobs(&piece.scores);
                    let choice = ChatChunkChoice { index, delta, logprobs, finish_reason: None };
                    self.chat_event(&[choice], self.no_usage(), out);
                }
                // One to an event: many clients look at the first only.
                for call in piece.calls.iter().filter_map(call_delta) {
                    let delta = ChatDelta { tool_calls: Some([call]), ..ChatDelta::default() };
                    let choice = ChatChunkChoice { index, delta, logprobs: None, finish_reason: None };
                    self.chat_event(&[choice], self.no_usage(), out);
                }
            }
            Api::Completion => {
                let logprobs = completion_logprobs(&piece.scores);
                let choice = CompletionChoice { text: &piece.text, index, logprobs, finish_reason: None };
                self.completion_event(&[choice], self.no_usage(), out);
            }
        }
    }

    fn write_finish(&self, index: u32, reason: FinishReason, called: bool, out: &mut String) {
        match self.api {
            Api::Chat => {
                let finish_reason = Some(chat_finish(reason, called));
                let choice = ChatChunkChoice { index, delta: ChatDelta::default(), logprobs: None, finish_reason };
                self.chat_event(&[choice], self.no_usage(), out);
            }
            Api::Completion => {
                let finish_reason = Some(reason);
                let choice = CompletionChoice { text: "", index, logprobs: None, finish_reason };
                self.completion_event(&[choice], self.no_usage(), out);
            }
        }
    }

    fn write_usage(&self, usage: Usage, out: &mut String) {
        match self.api {
            Api::Chat => self.chat_event(&[], Some(Some(usage)), out),
            Api::Completion => self.completion_event(&[], Some(Some(usage)), out),
        }
    }
}

/// Why a chat's answer ended, by why its tokens did.
pub(crate) fn chat_finish(reason: FinishReason, called: bool) -> ChatFinish {
    match reason {
        FinishReason::Stop if called => ChatFinish::ToolCalls,
        FinishReason::Stop => ChatFinish::Stop,
        FinishReason::Length => ChatFinish::Length,
    }
}

fn call_delta(delta: &CallDelta) -> Option<ToolCallDelta<'_>> {
    match delta {
        CallDelta::Begin { index, id, name } => {
            let function = FunctionDelta { name: Some(name), arguments: "" };
            Some(ToolCallDelta { index: *index, id: Some(id), kind: Some("function"), function })
        }
        CallDelta::Arguments { index, text } => {
            let function = FunctionDelta { name: None, arguments: text };
            Some(ToolCallDelta { index: *index, id: None, kind: None, function })
        }
        CallDelta::Withdrawn { .. } => None,
    }
}

/// Appends `data: <json>`. These types serialize without fail: they have no maps and no foreign code.
pub(crate) fn write_event(event: &impl serde::Serialize, out: &mut String) {
    let Ok(json) = serde_json::to_string(event) else { return };
    out.push_str("data: ");
    out.push_str(&json);
    out.push_str("\n\n");
}

/// One output of the answer.
struct Part {
    /// None once the output ended.
    stream: Option<TokenStream>,
    choice: Choice,
    /// Whether its opening is out: a chat choice says first who speaks.
    opened: bool,
}

/// Bytes to be handed over in one go.
struct Write {
    bytes: Bytes,
    /// Whether they carry tokens, for the access record.
    tokens: bool,
}

/// The body of a streamed answer.
pub(crate) struct SseBody {
    envelope: Envelope,
    parts: Vec<Part>,
    /// Part to ask first, so that none starves.
    next_part: usize,
    writes: VecDeque<Write>,
    deadline: Pin<Box<Sleep>>,
    deadline_ms: u64,
    ended: bool,
    access: AccessGuard,
}

impl SseBody {
    /// A body over the streams and choices; `deadline` is a timer and, for messages, its length.
    pub fn new(
        envelope: Envelope,
        parts: Vec<(TokenStream, Choice)>,
        deadline: (Sleep, u64),
        access: AccessGuard,
    ) -> Self {
        let opened = envelope.api == Api::Completion;
        let parts = parts.into_iter().map(|(stream, choice)| Part { stream: Some(stream), choice, opened }).collect();
        Self {
            envelope,
            parts,
            next_part: 0,
            writes: VecDeque::new(),
            deadline: Box::pin(deadline.0),
            deadline_ms: deadline.1,
            ended: false,
            access,
        }
    }

    /// Takes one event from whichever part has one.
    fn poll_parts(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for offset in 0..self.parts.len() {
            let index = (self.next_part + offset) % self.parts.len();
            let Some(stream) = &mut self.parts[index].stream else { continue };
            if let Poll::Ready(event) = stream.events.poll_recv(cx) {
                self.next_part = index + 1;
                self.on_event(index, event);
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    fn on_event(&mut self, index: usize, event: Option<Result<StreamEvent, ApiError>>) {
        match event {
            Some(Ok(StreamEvent::Waiting)) => {
                self.writes.push_back(Write { bytes: Bytes::from_static(WAITING), tokens: false });
            }
            Some(Ok(StreamEvent::Hop(HopEvent::Tokens(tokens)))) => self.on_tokens(index, &tokens, Vec::new()),
            Some(Ok(StreamEvent::Hop(HopEvent::Scored { tokens, logprobs }))) => {
                self.on_tokens(index, &tokens, logprobs);
            }
            Some(Ok(StreamEvent::Hop(HopEvent::Finished { reason, cached_tokens }))) => {
                let mut piece = Piece::default();
                let reason = self.parts[index].choice.finish(reason, &mut piece);
                if self.envelope.counts_prompt(index) {
                    let record = &mut self.access.record;
                    record.cached_tokens = record.cached_tokens.saturating_add(cached_tokens);
                }
                self.on_piece(index, &piece, Some(reason));
            }
            Some(Ok(StreamEvent::Hop(HopEvent::Failed { message, .. }))) => {
                self.fail(&ApiError::Unavailable { message, retry_after_s: None });
            }
            Some(Err(error)) => self.fail(&error),
            None => self.fail(&ApiError::Unavailable {
                message: "The stream broke off before it was complete".to_owned(),
                retry_after_s: None,
            }),
        }
    }

    fn on_tokens(&mut self, index: usize, tokens: &[TokenId], logprobs: Vec<TokenLogprobs>) {
        let mut piece = Piece::default();
        let stopped = self.parts[index].choice.push(tokens, logprobs, &mut piece);
        self.on_piece(index, &piece, stopped);
    }

    /// Queues what one event of the backend gives: all of it in one write.
    fn on_piece(&mut self, index: usize, piece: &Piece, finish: Option<FinishReason>) {
        self.access.record.output_tokens = self.parts.iter().map(|part| part.choice.output_tokens()).sum();
        let mut out = String::new();
        if !std::mem::replace(&mut self.parts[index].opened, true) {
            self.envelope.write_role(index as u32, &mut out);
        }
        if !piece.is_empty() {
            self.envelope.write_piece(index as u32, piece, &mut out);
        }
        if let Some(reason) = finish {
            let called = self.parts[index].choice.has_called();
            self.envelope.write_finish(index as u32, reason, called, &mut out);
            // Dropping the stream tells the backend that a stop string ended it.
            self.parts[index].stream = None;
            self.access.record.finish = Some(reason);
            if self.parts.iter().all(|part| part.stream.is_none()) {
                self.end(AccessOutcome::Finished, &mut out);
            }
        }
        if !out.is_empty() {
            let tokens = !piece.text.is_empty() || !piece.calls.is_empty() || finish.is_none();
            self.writes.push_back(Write { bytes: out.into(), tokens });
        }
    }

    fn end(&mut self, outcome: AccessOutcome, out: &mut String) {
        let record = &mut self.access.record;
        record.outcome = outcome;
        if outcome == AccessOutcome::Finished && self.envelope.include_usage {
            let usage = Usage::new(record.prompt_tokens, record.output_tokens, record.cached_tokens);
            self.envelope.write_usage(usage, out);
        }
        out.push_str(DONE);
        self.ended = true;
        self.parts.iter_mut().for_each(|part| part.stream = None);
    }

    /// The head is out, so the error becomes an event.
    fn fail(&mut self, error: &ApiError) {
        let mut out = String::new();
        write_event(&error.body(), &mut out);
        self.end(AccessOutcome::Failed, &mut out);
        self.writes.push_back(Write { bytes: out.into(), tokens: false });
    }
}

impl Stream for SseBody {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            if let Some(write) = this.writes.pop_front() {
                this.access.note_write(write.tokens);
                return Poll::Ready(Some(Ok(write.bytes)));
            }
            if this.ended {
                return Poll::Ready(None);
            }
            if this.poll_parts(cx).is_ready() {
                continue;
            }
            if this.deadline.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let stage = "before the answer was complete";
            this.fail(&ApiError::DeadlineExceeded { deadline_ms: this.deadline_ms, stage });
        }
    }
}
