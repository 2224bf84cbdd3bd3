"""The openai package as a client, unchanged: every call a newcomer's code makes, against a running Foreshock.

Usage: python openai_client.py BASE_URL MODEL. Prints one line per check; the first failure ends it with a traceback.
"""

import json
import sys

import openai

base_url, model = sys.argv[1:3]
client = openai.OpenAI(base_url=base_url, api_key="sk-any", timeout=120, max_retries=0)


def check(name, condition, detail=""):
    if not condition:
        raise SystemExit(f"FAILED {name}: {detail}")
    print(f"ok {name}")


def refused(name, kind, status, call, code=None):
    try:
        call()
    except kind as error:
        check(name, error.status_code == status and error.body["message"], (error.status_code, error.body))
        check(f"{name}: code", code is None or error.code == code, error.code)
        return
    raise SystemExit(f"FAILED {name}: no error was raised")


messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": "What is the capital of France?"}]
ask = dict(model=model, messages=messages, max_tokens=24, temperature=0)

names = [m.id for m in client.models.list()]
check("models.list", model in names, names)
check("models.retrieve", client.models.retrieve(model).id == model)

whole = client.chat.completions.create(**ask)
text = whole.choices[0].message.content
check("chat", bool(text) and whole.choices[0].finish_reason in ("stop", "length"), whole)
check("chat usage", whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens, whole.usage)
check("chat id", whole.id.startswith("chatcmpl-") and whole.object == "chat.completion", whole)

chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
deltas = [c.choices[0].delta for c in chunks if c.choices]
check("chat stream role", deltas[0].role == "assistant", deltas[0])
check("chat stream is the whole answer", "".join(d.content or "" for d in deltas) == text, (text, deltas))
check("chat stream finish", [c for c in chunks if c.choices][-1].choices[0].finish_reason == whole.choices[0].finish_reason)
counted = lambda usage: (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)
check("chat stream usage", counted(chunks[-1].usage) == counted(whole.usage), (chunks[-1].usage, whole.usage))
check("cached tokens", 0 < chunks[-1].usage.prompt_tokens_details.cached_tokens < whole.usage.prompt_tokens, chunks[-1].usage)

completion = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0)
check("completion", completion.object == "text_completion" and completion.choices[0].text, completion)
streamed = client.completions.create(model=model, prompt="Once upon a time", max_tokens=8, temperature=0, stream=True)
check("completion stream", "".join(c.choices[0].text for c in streamed if c.choices) == completion.choices[0].text)

ids = client.completions.create(
    model=model, prompt=[504, 3575, 282, 4649, 314], max_tokens=4, temperature=0, extra_body={"ignore_eos": True}
)
check("token-id prompt", ids.usage.prompt_tokens == 5 and ids.usage.completion_tokens == 4, ids.usage)

several = client.completions.create(model=model, prompt=["One", "Two"], max_tokens=2, temperature=0)
check("several prompts", [c.index for c in several.choices] == [0, 1], several)

seeded = [
    client.chat.completions.create(**{**ask, "temperature": 1, "seed": 7}).choices[0].message.content for _ in range(2)
]
check("seed repeats", seeded[0] == seeded[1], seeded)

stop = client.chat.completions.create(**{**ask, "stop": [text[4:8]]}).choices[0]
check("stop string", stop.message.content == text[:4] and stop.finish_reason == "stop", stop)

weather = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 16},
        "unit": {"enum": ["celsius", "fahrenheit"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "unit", "days"],
    "additionalProperties": False,
}
tools = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city.", "parameters": weather, "strict": True}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}},
]
tooled = dict(ask, tools=tools, max_tokens=400, messages=[{"role": "user", "content": "What is the weather in Paris?"}])


def valid(name, arguments):
    arguments = json.loads(arguments)
    if name == "now":
        return arguments == {}
    city, unit, days = (arguments.pop(key) for key in ("city", "unit", "days"))
    return name == "get_weather" and not arguments and len(city) <= 16 and unit in ("celsius", "fahrenheit") and 1 <= days <= 9


def streamed_calls(**request):
    content, calls, finish = "", [], None
    for chunk in client.chat.completions.create(**request, stream=True):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            finish = choice.finish_reason or finish
            for part in choice.delta.tool_calls or []:
                if part.index == len(calls):
                    check("call begins with its id", part.id and part.type == "function" and part.function.name, part)
                    calls.append([part.function.name, ""])
                calls[part.index][1] += part.function.arguments or ""
    return content, calls, finish


for seed in range(3):
    hot = dict(tooled, temperature=1.5, seed=seed, tool_choice="required")
    choice = client.chat.completions.create(**hot).choices[0]
    calls = [[call.function.name, call.function.arguments] for call in choice.message.tool_calls]
    check("required calls are valid", calls and all(valid(*call) for call in calls), choice)
    check("required finish", choice.finish_reason in ("tool_calls", "length") and not (choice.message.content and choice.finish_reason == "tool_calls"), choice)
    content, streamed, finish = streamed_calls(**hot)
    check("streamed calls are the whole answer's", streamed[: len(calls)] == calls and finish == choice.finish_reason, (streamed, calls))
named = dict(tooled, temperature=1.5, seed=7, tool_choice={"type": "function", "function": {"name": "get_weather"}})
choice = client.chat.completions.create(**named).choices[0]
(call,) = choice.message.tool_calls
check("named call", call.function.name == "get_weather" and valid("get_weather", call.function.arguments), choice)
check("named finish", choice.finish_reason == "tool_calls" and choice.message.content is None, choice)
single = client.chat.completions.create(**dict(hot, parallel_tool_calls=False)).choices[0]
check("one call where one is allowed", len(single.message.tool_calls) == 1 and single.finish_reason == "tool_calls", single)
free = client.chat.completions.create(**tooled).choices[0]
check("auto calls are valid", all(valid(c.function.name, c.function.arguments) for c in free.message.tool_calls or []), free)
told = tooled["messages"] + [
    {"role": "assistant", "tool_calls": [c.model_dump() for c in choice.message.tool_calls]},
    {"role": "tool", "tool_call_id": call.id, "content": "Rain."},
]
answered = client.chat.completions.create(**dict(tooled, messages=told, tool_choice="none", max_tokens=16)).choices[0]
check("answer to a tool's message", answered.message.content and not answered.message.tool_calls, answered)
refused("unknown tool", openai.BadRequestError, 400, lambda: client.chat.completions.create(**dict(tooled, tool_choice={"type": "function", "function": {"name": "no"}})))

raw = client.chat.completions.with_raw_response.create(**ask)
check("request id", bool(raw.headers.get("x-request-id")), dict(raw.headers))

refused("unknown model", openai.NotFoundError, 404, lambda: client.chat.completions.create(**{**ask, "model": "no-such"}), "model_not_found")
refused("max_tokens 0", openai.BadRequestError, 400, lambda: client.chat.completions.create(**{**ask, "max_tokens": 0}))
refused("temperature", openai.BadRequestError, 400, lambda: client.chat.completions.create(**{**ask, "temperature": 9}))
refused("too long", openai.BadRequestError, 400, lambda: client.completions.create(model=model, prompt=[504] * 9000), "context_length_exceeded")
refused("unknown field", openai.BadRequestError, 400, lambda: client.chat.completions.create(**ask, extra_body={"frobnicate": 1}))
print("all passed")
