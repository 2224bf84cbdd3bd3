"""The openai package as a client, unchanged: every call a newcomer's code makes, against a running Foreshock.

Usage: python openai_client.py BASE_URL MODEL. Prints one line per check; the first failure ends it with a traceback.
"""

import json
import re
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

person = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
as_person = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": person}}
shaped = dict(model=model, messages=messages, max_tokens=120, temperature=1.5, seed=3)
answer = client.chat.completions.create(**shaped, n=3, response_format=as_person)
people = [json.loads(choice.message.content) for choice in answer.choices if choice.finish_reason == "stop"]
check("json schema", people and all(list(p) == ["name", "age"] and 0 <= p["age"] <= 120 and len(p["name"]) <= 20 for p in people), answer)
chunks = client.chat.completions.create(**shaped, response_format=as_person, stream=True)
streamed = "".join(c.choices[0].delta.content or "" for c in chunks)
check("json schema stream", streamed == answer.choices[0].message.content, streamed)
chosen = client.chat.completions.create(**shaped, extra_body={"structured_outputs": {"choice": ["north", "south"]}})
check("choice", chosen.choices[0].message.content in ("north", "south") and chosen.choices[0].finish_reason == "stop", chosen)
dated = client.completions.create(model=model, prompt="On", temperature=1.5, max_tokens=40, extra_body={"guided_regex": r"\d{4}-\d\d"})
check("regex", re.fullmatch("[0-9]{4}-[0-9]{2}", dated.choices[0].text), dated)
mode = client.chat.completions.create(**{**shaped, "max_tokens": 3}, response_format={"type": "json_object"}).choices[0]
check("json mode, cut", mode.finish_reason == "length" and mode.message.content.startswith("{"), mode)

raw = client.chat.completions.with_raw_response.create(**ask)
check("request id", bool(raw.headers.get("x-request-id")), dict(raw.headers))

refused("unknown model", openai.NotFoundError, 404, lambda: client.chat.completions.create(**{**ask, "model": "no-such"}), "model_not_found")
refused("max_tokens 0", openai.BadRequestError, 400, lambda: client.chat.completions.create(**{**ask, "max_tokens": 0}))
refused("temperature", openai.BadRequestError, 400, lambda: client.chat.completions.create(**{**ask, "temperature": 9}))
refused("too long", openai.BadRequestError, 400, lambda: client.completions.create(model=model, prompt=[504] * 9000), "context_length_exceeded")
impossible = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer", "minimum": 2, "maximum": 1}}}
refused("schema that cannot be met", openai.BadRequestError, 400, lambda: client.chat.completions.create(**ask, response_format=impossible))
refused("unknown field", openai.BadRequestError, 400, lambda: client.chat.completions.create(**ask, extra_body={"frobnicate": 1}))
print("all passed")
