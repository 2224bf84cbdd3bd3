//! From a checked API request to token requests: template, tokens, limits of the model.

use crate::context::random_u64;
use crate::tools::constraint;
use crate::{ApiError, Backend, RequestContext};
use engine_grammar::GrammarError;
use engine_text::TextModel;
use engine_wire::TokenId;
use engine_wire::constraint::Constraint;
use engine_wire::hop::GenerateRequest;
use engine_wire::openai::{ChatMessage, GenerateOptions, Prompt, ToolChoice, ToolOptions};
use engine_wire::sampling::{Sampling, StopRule, choice_seed};
use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout_at;

/// OpenAI's default for completions; chat may use the whole context.
const COMPLETION_MAX_TOKENS: u32 = 16;
/// Texts up to this length are tokenized in place: less than a millisecond.
const INLINE_BYTES: usize = 2048;

/// What is to be turned into tokens.
pub(crate) enum Input {
    Chat { messages: Vec<ChatMessage>, tools: Arc<ToolOptions> },
    Prompts(Vec<Prompt>),
}

impl Input {
    /// The tools that go with it.
    pub fn tools(&self) -> Arc<ToolOptions> {
        match self {
            Self::Chat { tools, .. } => tools.clone(),
            Self::Prompts(_) => Arc::default(),
        }
    }
}

/// What one API request comes to.
pub(crate) struct Prepared {
    pub text: Arc<TextModel>,
    /// Every choice of the first prompt, then of the next.
    pub outputs: Vec<Output>,
    /// Of all prompts, each counted once.
    pub prompt_tokens: u32,
}

/// One output that is asked for.
pub(crate) struct Output {
    pub request: GenerateRequest,
    /// How the answer is to begin with the prompt, if it is.
    pub echo: Option<Echoed>,
}

/// The prompt at the head of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Echoed {
    Text(Arc<str>),
    /// With log-probabilities: its first token, which has none, and how many more of its tokens the output begins with.
    Scored {
        first: TokenId,
        given: u32,
    },
}

/// A prompt in tokens.
struct Tokenized {
    ids: Vec<TokenId>,
    echo: Option<Arc<str>>,
}

/// Makes the token requests. `tokenizers` bounds how many texts are tokenized at a time.
pub(crate) async fn prepare<B: Backend>(
    backend: &B,
    context: &RequestContext,
    options: &GenerateOptions,
    input: Input,
    tokenizers: &Arc<Semaphore>,
) -> Result<Prepared, ApiError> {
    let text =
        before_deadline(context, "while the model's tokenizer was loaded", backend.text(&options.model)).await??;
    if text.vectors().is_some() {
        let message =
            format!("The model `{}` makes embeddings and generates no text: use /v1/embeddings.", options.model);
        return Err(invalid("model", message));
    }
    if options.max_tokens.is_some_and(|max_tokens| options.min_tokens > max_tokens) {
        return Err(invalid("min_tokens", "Invalid 'min_tokens': it is greater than max_tokens.".to_owned()));
    }
    check_ids(&options.stop_token_ids, "stop_token_ids", text.vocab())?;
    let biased: Vec<TokenId> = options.logit_bias.iter().map(|(token, _)| *token).collect();
    check_ids(&biased, "logit_bias", text.vocab())?;
    let options = &*with_calls(options, &input.tools(), &text)?;
    if let Some(constraint) = &options.constraint {
        let check = check_constraint(constraint.clone(), options.constraint_param.clone(), tokenizers);
        before_deadline(context, "while its constraint was checked", check).await??;
    }
    let is_chat = matches!(input, Input::Chat { .. });
    let tokenized = tokenize(text.clone(), input, Echo::of(options), tokenizers);
    let prompts = before_deadline(context, "while the prompt was tokenized", tokenized).await??;
    // Drawn once, so that a stream that goes on elsewhere makes the same draws.
    let seed = match options.seed {
        Some(seed) => seed as u64,
        None if options.temperature > 0.0 => random_u64(),
        None => 0,
    };
    let prompt_tokens: usize = prompts.iter().map(|prompt| prompt.ids.len()).sum();
    let mut outputs = Vec::with_capacity(prompts.len() * options.n as usize);
    for Tokenized { ids, echo } in prompts {
        let max_tokens = output_limit(text.context_tokens, ids.len(), options.max_tokens, is_chat)?;
        for choice in 0..options.n {
            let request = request(options, ids.clone(), max_tokens, choice_seed(seed, choice));
            outputs.push(with_echo(request, echo.clone()));
        }
    }
    Ok(Prepared { text, outputs, prompt_tokens: u32::try_from(prompt_tokens).unwrap_or(u32::MAX) })
}

/// With log-probabilities wanted, all of the prompt but its first token is given as output, because only output is scored:
/// the same tokens at the same positions.
fn with_echo(mut request: GenerateRequest, text: Option<Arc<str>>) -> Output {
    if text.is_none() || request.top_logprobs.is_none() {
        return Output { request, echo: text.map(Echoed::Text) };
    }
    request.given = request.prompt.split_off(1);
    let given = u32::try_from(request.given.len()).unwrap_or(u32::MAX);
    request.stop.max_tokens = request.stop.max_tokens.saturating_add(given);
    if request.stop.min_tokens > 0 {
        request.stop.min_tokens = request.stop.min_tokens.saturating_add(given);
    }
    let echo = Some(Echoed::Scored { first: request.prompt[0], given });
    Output { request, echo }
}

fn request(options: &GenerateOptions, prompt: Vec<TokenId>, max_tokens: u32, seed: u64) -> GenerateRequest {
    GenerateRequest {
        model: options.model.clone(),
        adapter_revision: None,
        prompt,
        emitted: Vec::new(),
        given: Vec::new(),
        sampling: Sampling {
            temperature: options.temperature,
            top_p: options.top_p,
            top_k: options.top_k,
            min_p: options.min_p,
            seed,
            frequency_penalty: options.frequency_penalty,
            presence_penalty: options.presence_penalty,
            repetition_penalty: options.repetition_penalty,
            logit_bias: options.logit_bias.clone(),
        },
        stop: StopRule {
            max_tokens,
            min_tokens: options.min_tokens,
            ignore_eos: options.ignore_eos,
            stop_token_ids: options.stop_token_ids.clone(),
        },
        top_logprobs: options.top_logprobs,
        priority: options.priority,
        constraint: options.constraint.clone(),
    }
}

/// The options with the constraint that calls of these tools must follow, if there is one.
fn with_calls<'a>(
    options: &'a GenerateOptions,
    tools: &ToolOptions,
    text: &TextModel,
) -> Result<Cow<'a, GenerateOptions>, ApiError> {
    let must_call = matches!(tools.choice, ToolChoice::Required | ToolChoice::Function(_));
    if options.constraint.is_some() {
        let message =
            format!("Invalid 'tool_choice': an answer cannot be a call and follow '{}'.", options.constraint_param);
        return if must_call { Err(invalid("tool_choice", message)) } else { Ok(Cow::Borrowed(options)) };
    }
    let constraint = constraint(tools, text.tool_format());
    match constraint.map_err(|error| invalid("tools", format!("Invalid 'tools': {error}.")))? {
        None => Ok(Cow::Borrowed(options)),
        Some(constraint) => Ok(Cow::Owned(GenerateOptions {
            constraint: Some(Arc::new(constraint)),
            constraint_param: "tools".to_owned(),
            ..options.clone()
        })),
    }
}

/// Refuses a constraint that no output can follow, before an instance is woken for it.
async fn check_constraint(
    constraint: Arc<Constraint>,
    param: String,
    tokenizers: &Arc<Semaphore>,
) -> Result<(), ApiError> {
    // Compiling takes milliseconds whatever the length is, so never in place.
    let work = move || {
        engine_grammar::check(&constraint).map_err(|error| match error {
            GrammarError::Failed { message } => ApiError::Internal { message },
            GrammarError::Busy => ApiError::Unavailable { message: error.to_string(), retry_after_s: None },
            error => invalid(&param, format!("Invalid '{param}': {error}.")),
        })
    };
    in_turn(usize::MAX, tokenizers, work).await
}

/// Whether the text of a prompt is kept, to be the beginning of the answer.
#[derive(Clone, Copy)]
struct Echo {
    wanted: bool,
    skip_special_tokens: bool,
}

impl Echo {
    fn of(options: &GenerateOptions) -> Self {
        Self { wanted: options.echo, skip_special_tokens: options.skip_special_tokens }
    }
}

/// Waits no longer than the request's deadline.
pub(crate) async fn before_deadline<T>(
    context: &RequestContext,
    stage: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, ApiError> {
    let late = |_| ApiError::DeadlineExceeded { deadline_ms: context.deadline_ms(), stage };
    timeout_at(context.deadline.into(), work).await.map_err(late)
}

async fn tokenize(
    text: Arc<TextModel>,
    input: Input,
    echo: Echo,
    tokenizers: &Arc<Semaphore>,
) -> Result<Vec<Tokenized>, ApiError> {
    let text_bytes = longest_text_bytes(&input);
    // Before it waits for its turn, so that what cannot fit is not kept in memory.
    refuse_hopeless(&text, text_bytes)?;
    // Of tools it is not known how much of their text comes into the prompt.
    let tool_bytes: usize =
        input.tools().offered().iter().filter_map(|tool| tool.parameters.as_ref().map(String::len)).sum();
    in_turn(text_bytes + tool_bytes, tokenizers, move || encode_all(&text, input, echo)).await
}

/// Does work on a text: in place when the text is short, else on a blocking thread when its turn has come.
pub(crate) async fn in_turn<T: Send + 'static>(
    text_bytes: usize,
    tokenizers: &Arc<Semaphore>,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if text_bytes <= INLINE_BYTES {
        return work();
    }
    let closed = |_| ApiError::ShuttingDown;
    let permit = tokenizers.clone().acquire_owned().await.map_err(closed)?;
    let work = spawn_blocking(move || {
        // Held until the work is done, even if nobody waits for it any more.
        let _permit = permit;
        work()
    });
    work.await.map_err(|error| ApiError::Internal { message: format!("tokenizing failed: {error}") })?
}

fn longest_text_bytes(input: &Input) -> usize {
    let text = |prompt: &Prompt| if let Prompt::Text(text) = prompt { text.len() } else { 0 };
    match input {
        Input::Chat { messages, .. } => messages.iter().map(ChatMessage::text_bytes).sum(),
        Input::Prompts(prompts) => prompts.iter().map(text).max().unwrap_or(0),
    }
}

/// A text that cannot fit, by its length alone, is not worth a second of a core.
pub(crate) fn refuse_hopeless(model: &TextModel, text_bytes: usize) -> Result<(), ApiError> {
    let at_least = model.tokens_at_least(text_bytes);
    if at_least <= u64::from(model.context_tokens) {
        return Ok(());
    }
    let prompt_tokens = u32::try_from(at_least).unwrap_or(u32::MAX);
    Err(ApiError::ContextLength { context_tokens: model.context_tokens, prompt_tokens, max_tokens: 1 })
}

fn encode_all(text: &TextModel, input: Input, echo: Echo) -> Result<Vec<Tokenized>, ApiError> {
    match input {
        Input::Chat { messages, tools } => {
            let rendered = text.render_chat(&messages, tools.offered())?;
            Ok(vec![Tokenized { ids: encode(text, &rendered, false, "messages")?, echo: None }])
        }
        Input::Prompts(prompts) => prompts.into_iter().map(|prompt| encode_prompt(text, prompt, echo)).collect(),
    }
}

fn encode_prompt(text: &TextModel, prompt: Prompt, echo: Echo) -> Result<Tokenized, ApiError> {
    match prompt {
        Prompt::Text(prompt) => {
            let ids = encode(text, &prompt, true, "prompt")?;
            Ok(Tokenized { ids, echo: echo.wanted.then(|| prompt.into()) })
        }
        Prompt::Tokens(ids) => {
            check_ids(&ids, "prompt", text.vocab())?;
            let echo = echo.wanted.then(|| text.decode(&ids, echo.skip_special_tokens).into());
            Ok(Tokenized { ids: non_empty(ids, "prompt")?, echo })
        }
    }
}

fn encode(model: &TextModel, text: &str, add_special: bool, param: &str) -> Result<Vec<TokenId>, ApiError> {
    refuse_hopeless(model, text.len())?;
    non_empty(model.encode(text, add_special)?, param)
}

fn non_empty(ids: Vec<TokenId>, param: &str) -> Result<Vec<TokenId>, ApiError> {
    if ids.is_empty() {
        return Err(invalid(param, format!("Invalid '{param}': it has no tokens. Expected at least one.")));
    }
    Ok(ids)
}

pub(crate) fn check_ids(ids: &[TokenId], param: &str, vocab: usize) -> Result<(), ApiError> {
    match ids.iter().find(|id| **id as usize >= vocab) {
        None => Ok(()),
        Some(id) => {
            Err(invalid(param, format!("Invalid '{param}': token id {id} is outside the vocabulary of {vocab}.")))
        }
    }
}

pub(crate) fn invalid(param: &str, message: String) -> ApiError {
    ApiError::InvalidRequest { message, param: Some(param.to_owned()) }
}

/// Tokens that may be produced: as asked if the context has room for it, else an error, because an answer that
/// is silently cut shorter than asked looks like a bad model.
fn output_limit(context_tokens: u32, prompt: usize, max_tokens: Option<u32>, is_chat: bool) -> Result<u32, ApiError> {
    let prompt_tokens = u32::try_from(prompt).unwrap_or(u32::MAX);
    let room = context_tokens.saturating_sub(prompt_tokens);
    let asked = max_tokens.unwrap_or(1);
    if room < asked {
        return Err(ApiError::ContextLength { context_tokens, prompt_tokens, max_tokens: asked });
    }
    Ok(max_tokens.unwrap_or(if is_chat { room } else { room.min(COMPLETION_MAX_TOKENS) }))
}
