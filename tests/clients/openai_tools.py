"""Tools through the openai package, unchanged: calls whole and streamed, held to their schemas however hot the draw.

Usage: python openai_tools.py BASE_URL MODEL. Prints one line per check; the first failure ends it with a traceback.
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


def refused(name, **request):
    try:
        client.chat.completions.create(**request)
    except openai.BadRequestError as error:
        return check(name, error.status_code == 400 and error.body["param"].startswith("tool"), error.body)
    raise SystemExit(f"FAILED {name}: no error was raised")


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
tooled = dict(model=model, tools=tools, max_tokens=400, temperature=0, messages=[{"role": "user", "content": "What is the weather in Paris?"}])


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
refused("unknown tool", **dict(tooled, tool_choice={"type": "function", "function": {"name": "no"}}))
refused("tool choice without tools", **dict(tooled, tools=openai.NOT_GIVEN, tool_choice="required"))
print("all passed")
