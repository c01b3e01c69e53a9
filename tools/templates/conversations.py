"""Conversations as clients send them, each with what a chat template reads besides its messages."""

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": 'Weather of a city, "now" & <later>',
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Name\nof the city"},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                "days": {"type": ["integer", "null"], "minimum": 0},
                "where": {"anyOf": [{"type": "string"}, {"type": "object", "properties": {"lat": {"type": "number"}}}]},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["city"],
        },
    },
}
PING = {
    "type": "function",
    "function": {"name": "ping", "description": "No arguments.", "parameters": {"type": "object", "properties": {}}},
}
SYSTEM = {"role": "system", "content": "You are terse. Größe 10 €."}
ARGUMENTS = {
    "city": 'Zürich "A"',
    "days": 3,
    "where": {"lat": 47.5, "lon": -1e-7, "said": "it's\n\u200b"},
    "tags": ["a", "b"],
    "unit": None,
    "now": True,
}


def user(text):
    return {"role": "user", "content": text}


def said(text, **fields):
    return {"role": "assistant", "content": text, **fields}


def called(*calls, content=None, **fields):
    tool_calls = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, name, arguments in calls
    ]
    return {"role": "assistant", "content": content, "tool_calls": tool_calls, **fields}


def result(call_id, text):
    return {"role": "tool", "tool_call_id": call_id, "content": text}


# Mistral's templates insist on ids of nine letters or digits.
FIRST = ("call00001", "get_weather", ARGUMENTS)
SECOND = ("call00002", "ping", {})
TOOLS = {"tools": [WEATHER, PING]}

# Name: messages, and what the request has besides.
ALL = {
    "one": ([user("Hi")], {}),
    "system": ([SYSTEM, user("Hi  \n")], {}),
    "turns": ([SYSTEM, user("Hi"), said("Hello!"), user("More?")], {}),
    "complete": ([user("Hi"), said("Hello!\n")], {"add_generation_prompt": False}),
    "tools": ([SYSTEM, user("Weather?")], TOOLS),
    "tools without system": ([user("Weather?")], TOOLS),
    "called": ([user("Weather?"), called(FIRST), result("call00001", '{"t": 21.5}')], TOOLS),
    "called with words": (
        [SYSTEM, user("Weather?"), called(FIRST, content="Let me look."), result("call00001", "21"), said("It is 21."), user("And now?")],
        TOOLS,
    ),
    "called twice": (
        [user("W"), called(FIRST, SECOND), result("call00001", "21"), result("call00002", "pong")],
        TOOLS,
    ),
    "called again": (
        [user("W"), called(FIRST), result("call00001", "21"), called(SECOND), result("call00002", "pong"), said("Done"), user("Thanks")],
        TOOLS,
    ),
    "marked thinking": ([user("Q"), said("<think>\nBecause\n</think>\n\nA"), user("R")], {}),
    "thinking on": ([SYSTEM, user("Q")], {"chat_template_kwargs": {"enable_thinking": True, "thinking": True}}),
    "thinking off": ([SYSTEM, user("Q")], {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}),
    "thinking off with tools": (
        [user("Q"), said("A"), user("S")],
        {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}, **TOOLS},
    ),
    "two of a user": ([user("a"), user("b")], {}),
    "assistant first": ([said("Hello"), user("a")], {}),
    "late system": ([user("a"), said("x"), {"role": "system", "content": "new rule"}, user("b")], {}),
    "odd characters": ([user("{{ x }} {% y %} \\ ' \" <b>&amp;\r\n\t")], {}),
}
