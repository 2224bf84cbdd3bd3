//! Every request parameter: type and bounds as JSON schema, what it does, and an example that its parser accepts.

/// One field of a request body.
pub(super) struct Parameter {
    pub name: &'static str,
    pub required: bool,
    /// JSON schema, as JSON text.
    pub schema: &'static str,
    pub about: &'static str,
    /// A valid value, as JSON text.
    pub example: &'static str,
}

const fn required(name: &'static str, schema: &'static str, example: &'static str, about: &'static str) -> Parameter {
    Parameter { name, required: true, schema, about, example }
}

const fn optional(name: &'static str, schema: &'static str, example: &'static str, about: &'static str) -> Parameter {
    Parameter { name, required: false, schema, about, example }
}

const MODEL: Parameter = required("model", STRING, "\"m\"", "Name of a model that /v1/models lists.");
const STRING: &str = r#"{"type":"string"}"#;
const COUNT: &str = r#"{"type":"integer","minimum":1}"#;
const FLAG: &str = r#"{"type":"boolean","default":false}"#;
const ON: &str = r#"{"type":"boolean","default":true}"#;
const SHARE: &str = r#"{"type":"number","minimum":0,"maximum":1,"default":0}"#;
const PENALTY: &str = r#"{"type":"number","minimum":-2,"maximum":2,"default":0}"#;
const IDS: &str = r#"{"type":"array","items":{"type":"integer","minimum":0}}"#;
const MESSAGES: &str = r#"{"type":"array","minItems":1,"items":{"type":"object","required":["role"],"properties":{"role":{"enum":["system","developer","user","assistant","tool"]},"content":{"type":["string","array","null"]},"name":{"type":"string"},"tool_calls":{"type":"array","maxItems":128,"items":{"type":"object","required":["id","function"],"properties":{"id":{"type":"string"},"type":{"const":"function"},"function":{"type":"object","required":["name","arguments"],"properties":{"name":{"type":"string"},"arguments":{"type":"string"}}}}}},"tool_call_id":{"type":"string"}}}}"#;
const TOOLS: Parameter = optional(
    "tools",
    r#"{"type":"array","maxItems":128,"items":{"type":"object","required":["type","function"],"properties":{"type":{"const":"function"},"function":{"type":"object","required":["name"],"properties":{"name":{"type":"string","pattern":"^[a-zA-Z0-9_-]{1,64}$"},"description":{"type":"string"},"parameters":{"type":"object"},"strict":{"type":"boolean"}}}}}}"#,
    r#"[{"type":"function","function":{"name":"now","parameters":{"type":"object","properties":{}}}}]"#,
    "Functions that the model may call; together at most 256 KiB. Shown by the chat template; a template that knows none has them put into the system message in the Hermes form.",
);
const MESSAGES_EXAMPLE: &str = r#"[{"role":"user","content":"Hello"}]"#;

/// Of `/v1/chat/completions` alone.
pub(super) const CHAT: &[Parameter] = &[
    required("messages", MESSAGES, MESSAGES_EXAMPLE, "The conversation. Content is a string, or parts of type text."),
    optional("max_completion_tokens", COUNT, "8", "The newer name of max_tokens; it counts when both are there."),
    optional(
        "logprobs",
        FLAG,
        "true",
        "Whether log-probabilities of the output's tokens are returned: of the model's own distribution, before temperature, penalties and bias.",
    ),
    optional(
        "top_logprobs",
        r#"{"type":"integer","minimum":0,"maximum":20,"default":0}"#,
        "0",
        "Of how many of the likeliest tokens too. Needs logprobs.",
    ),
    TOOLS,
    optional(
        "tool_choice",
        r#"{"anyOf":[{"enum":["none","auto","required"]},{"type":"object","required":["type","function"],"properties":{"type":{"const":"function"},"function":{"type":"object","required":["name"],"properties":{"name":{"type":"string"}}}}}]}"#,
        r#""none""#,
        "Whether the model calls: not at all, as it likes (the default), at least once, or this function. Needs tools.",
    ),
    optional(
        "parallel_tool_calls",
        ON,
        "true",
        "Whether one answer may have several calls; it ends after one otherwise.",
    ),
];

/// Of `/v1/completions` alone.
pub(super) const COMPLETION: &[Parameter] = &[
    required(
        "prompt",
        r#"{"type":["string","array"]}"#,
        r#""Once""#,
        "A text, token ids, or an array of at most 16 of either.",
    ),
    optional(
        "logprobs",
        r#"{"type":"integer","minimum":0,"maximum":5}"#,
        "2",
        "Returns log-probabilities of the output's tokens and of so many of the likeliest: of the model's own distribution, before temperature, penalties and bias. With echo, of the prompt's too, but for its first token.",
    ),
    optional("echo", FLAG, "true", "Begins the answer with the prompt. max_tokens may then be 0."),
    optional("best_of", COUNT, "1", "Accepted when it is n."),
];

/// Of both.
pub(super) const GENERATE: &[Parameter] = &[
    MODEL,
    optional(
        "max_tokens",
        COUNT,
        "8",
        "Tokens to produce at most. Default: 16 for completions, the rest of the context for chats.",
    ),
    optional(
        "min_tokens",
        r#"{"type":"integer","minimum":0,"default":0}"#,
        "1",
        "Tokens before which nothing but max_tokens ends the output.",
    ),
    optional(
        "temperature",
        r#"{"type":"number","minimum":0,"maximum":2,"default":1}"#,
        "0.7",
        "Divides the logits; 0 takes the likeliest token.",
    ),
    optional(
        "top_p",
        r#"{"type":"number","exclusiveMinimum":0,"maximum":1,"default":1}"#,
        "0.9",
        "Only the likeliest tokens whose probability reaches this.",
    ),
    optional(
        "top_k",
        r#"{"type":"integer","minimum":-1,"default":0}"#,
        "40",
        "Only so many of the likeliest tokens; -1 and 0 switch it off.",
    ),
    optional("min_p", SHARE, "0.05", "Only tokens with this share of the likeliest one's probability."),
    optional(
        "seed",
        r#"{"type":"integer"}"#,
        "42",
        "Key of the draws: the same request with the same seed has the same output. Choice 0 uses it as it is, the others seeds derived from it.",
    ),
    optional("frequency_penalty", PENALTY, "0.5", "Taken from a token's logit for each time that it was generated."),
    optional("presence_penalty", PENALTY, "0.5", "Taken once from the logit of each token that was generated."),
    optional(
        "repetition_penalty",
        r#"{"type":"number","exclusiveMinimum":0,"default":1}"#,
        "1.1",
        "Divides positive and multiplies negative logits of tokens in prompt and output.",
    ),
    optional(
        "logit_bias",
        r#"{"type":"object","maxProperties":1024,"additionalProperties":{"type":"number","minimum":-100,"maximum":100}}"#,
        r#"{"5":-100}"#,
        "Added to the logits of the tokens with these ids.",
    ),
    optional(
        "n",
        r#"{"type":"integer","minimum":1,"maximum":16,"default":1}"#,
        "2",
        "Choices for each prompt; at most 64 in one request.",
    ),
    optional(
        "priority",
        r#"{"type":"integer","minimum":-2147483648,"maximum":2147483647,"default":0}"#,
        "-1",
        "Lower is served first, among the requests of the same tenant; one is overtaken at most 64 times.",
    ),
    optional(
        "stop",
        r#"{"type":["string","array"],"maxItems":16}"#,
        r#"["END"]"#,
        "Up to 16 strings that end the output, of at most 1024 bytes.",
    ),
    optional("stop_token_ids", IDS, "[7]", "Up to 256 tokens that end the output."),
    optional("include_stop_str_in_output", FLAG, "true", "Shows what ended the output."),
    optional("ignore_eos", FLAG, "true", "Goes on after the model's end of sequence."),
    optional("skip_special_tokens", ON, "false", "Leaves special tokens out of the text."),
    optional("stream", FLAG, "true", "Answers with server-sent events, the last of which is [DONE]."),
    optional(
        "stream_options",
        r#"{"type":"object","properties":{"include_usage":{"type":"boolean","default":false}}}"#,
        r#"{"include_usage":true}"#,
        "Whether a stream ends with a chunk that counts tokens.",
    ),
    optional(
        "response_format",
        r#"{"type":"object","required":["type"],"properties":{"type":{"enum":["text","json_object","json_schema"]},"json_schema":{"type":"object","required":["name","schema"],"properties":{"name":{"type":"string","pattern":"^[a-zA-Z0-9_-]{1,64}$"},"description":{"type":"string"},"schema":{"type":["object","boolean"]},"strict":{"type":"boolean","default":false}}}}}"#,
        r#"{"type":"json_schema","json_schema":{"name":"n","schema":{"type":"integer"},"strict":true}}"#,
        "Text, any JSON object, or JSON of a schema. The output always meets the schema; strict refuses one with keywords that cannot be enforced. Properties come in the schema's order.",
    ),
    optional(
        "structured_outputs",
        r#"{"type":"object","properties":{"json":{"type":["object","boolean","string"]},"regex":{"type":"string","maxLength":16384},"grammar":{"type":"string"},"choice":{"type":"array","items":{"type":"string"},"minItems":1,"maxItems":1024},"json_object":{"type":"boolean"},"disable_any_whitespace":{"type":"boolean","default":false}}}"#,
        r#"{"choice":["yes","no"]}"#,
        "What the output must be, as vLLM says it: exactly one of a JSON schema, a regular expression (of the whole output, without look-around), a grammar (llguidance's Lark), a choice of texts and any JSON object. At most 131072 bytes.",
    ),
    optional(
        "guided_json",
        r#"{"type":["object","boolean","string"]}"#,
        r#"{"type":"integer"}"#,
        "structured_outputs.json by its older name.",
    ),
    optional("guided_regex", STRING, r#""[0-9]+""#, "structured_outputs.regex by its older name."),
    optional("guided_grammar", STRING, r#""start: \"a\"""#, "structured_outputs.grammar by its older name."),
    optional(
        "guided_choice",
        r#"{"type":"array","items":{"type":"string"},"minItems":1,"maxItems":1024}"#,
        r#"["yes","no"]"#,
        "structured_outputs.choice by its older name.",
    ),
];

/// Of `/v1/embeddings`.
pub(super) const EMBEDDING: &[Parameter] = &[
    MODEL,
    required(
        "input",
        r#"{"type":["string","array"]}"#,
        r#"["One","Two"]"#,
        "A text, token ids, or an array of at most 2048 of either; 300,000 tokens in all. Token ids are taken as they are, with nothing added.",
    ),
    optional(
        "encoding_format",
        r#"{"enum":["float","base64"],"default":"float"}"#,
        r#""base64""#,
        "Vectors as arrays of numbers, or as base64 of their little-endian f32.",
    ),
    optional(
        "dimensions",
        COUNT,
        "256",
        "Numbers in each vector: fewer than the model has only where it was trained for that (Matryoshka).",
    ),
    optional(
        "truncate_prompt_tokens",
        r#"{"type":"integer","minimum":-1}"#,
        "-1",
        "Cuts texts off at so many tokens, or at the model's limit with -1. Without it a text that is too long is refused.",
    ),
];

/// Of `/tokenize`.
pub(super) const TOKENIZE: &[Parameter] = &[
    MODEL,
    optional("prompt", STRING, r#""Once""#, "A text: either this or messages."),
    optional("messages", MESSAGES, MESSAGES_EXAMPLE, "A conversation, tokenized as a chat completion would be."),
    optional(
        "add_special_tokens",
        r#"{"type":"boolean"}"#,
        "false",
        "Whether the model's begin and end tokens are put around a prompt. Default true; false for messages, whose template writes them.",
    ),
    optional(
        "add_generation_prompt",
        r#"{"const":true}"#,
        "true",
        "With messages: the opening of the answer is always part of it.",
    ),
    TOOLS,
    optional("return_token_strs", FLAG, "true", "Returns each token's text too."),
];

/// Of `/detokenize`.
pub(super) const DETOKENIZE: &[Parameter] =
    &[MODEL, required("tokens", IDS, "[1,2]", "Token ids. Special tokens are part of the text.")];
