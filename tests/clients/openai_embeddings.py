"""The openai package asking for embeddings, unchanged, against a running Foreshock.

Usage: python openai_embeddings.py BASE_URL EMBEDDER GENERATOR GOLDEN. Prints one line per check; the first failure ends it.
"""

import json
import math
import sys

import openai

base_url, model, generator, golden = sys.argv[1:5]
client = openai.OpenAI(base_url=base_url, api_key="sk-any", timeout=120, max_retries=0)
cases = [case for case in json.load(open(golden))["cases"] if len(case["input_ids"]) < 256]
texts = [case["text"] for case in cases]


def check(name, condition, detail=""):
    if not condition:
        raise SystemExit(f"FAILED {name}: {detail}")
    print(f"ok {name}")


def refused(name, param, call, code=None):
    try:
        call()
    except openai.BadRequestError as error:
        found = (error.status_code, error.param, error.code, error.type)
        check(name, found == (400, param, code, "invalid_request_error") and error.body["message"], (found, error.body))
        return
    raise SystemExit(f"FAILED {name}: no error was raised")


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


check("models.list", model in [entry.id for entry in client.models.list()])
# The client asks for base64 by itself, and decodes it.
answer = client.embeddings.create(model=model, input=texts)
check("shape", (answer.object, answer.model, [row.index for row in answer.data]) == ("list", model, list(range(len(texts)))), answer)
for case, row in zip(cases, answer.data):
    check(f"reference {case['text'][:20]!r}", cosine(row.embedding, case["embedding"]) > 0.9999)
    check("length 1", abs(math.sqrt(sum(x * x for x in row.embedding)) - 1) < 1e-5)
tokens = sum(len(case["input_ids"]) for case in cases)
check("usage", (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens), answer.usage)

floats = client.embeddings.create(model=model, input=texts, encoding_format="float")
close = [max(abs(x - y) for x, y in zip(a.embedding, b.embedding)) for a, b in zip(answer.data, floats.data)]
check("base64 is float", max(close) < 1e-8, close)
one = client.embeddings.create(model=model, input=texts[0], encoding_format="float")
check("alone is in company", one.data[0].embedding == floats.data[0].embedding)
ids = client.embeddings.create(model=model, input=[cases[0]["input_ids"]], encoding_format="float")
check("token ids", ids.data[0].embedding == floats.data[0].embedding)
check("dimensions", len(client.embeddings.create(model=model, input="a", dimensions=384).data[0].embedding) == 384)
cut = client.embeddings.create(model=model, input="word " * 400, extra_body={"truncate_prompt_tokens": -1})
check("truncated", cut.usage.prompt_tokens == 256, cut.usage)
many = client.embeddings.create(model=model, input=["text number %d" % n for n in range(300)])
check("many", len(many.data) == 300)

refused("too long", "input", lambda: client.embeddings.create(model=model, input="word " * 400), "context_length_exceeded")
refused("dimensions beyond training", "dimensions", lambda: client.embeddings.create(model=model, input="a", dimensions=64))
refused("generator", "model", lambda: client.embeddings.create(model=generator, input="a"))
messages = [{"role": "user", "content": "a"}]
refused("chat", "model", lambda: client.chat.completions.create(model=model, messages=messages))
refused("completion", "model", lambda: client.completions.create(model=model, prompt="a"))
print(f"prompt_tokens {tokens * 2 + len(cases[0]['input_ids']) * 2 + 3 + 256 + many.usage.prompt_tokens}")
print("all passed")
