"""Renders the chat templates in server/tests/fixtures/templates as transformers does and stores what came out.

The templates are written for this project, in the style of published ones; only the rendered JSON is generated.
"""

import jinja2
from transformers.utils.chat_template_utils import _compile_jinja_template

from common import SERVER_FIXTURES, write_json

FOLDER = SERVER_FIXTURES / "templates"

SYSTEM = {"role": "system", "content": "  You are terse.\nAlways.  "}
HI = {"role": "user", "content": "Hi there  "}
HELLO = {"role": "assistant", "content": " Hello! How can I help?\n"}
MORE = {"role": "user", "content": "Tell me a “joke” <b>now</b> & fast\n😀"}
THOUGHT = {"role": "assistant", "content": "<think>\nThe user greets.\n</think>\n\nHello again"}
REASONED = {"role": "assistant", "content": "It is sunny.", "reasoning_content": "\nI have looked.\n"}
ODD_ROLE = {"role": "critic", "content": "who am I"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a place.\nOne day only.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "A city, e.g. 'Zürich' & \"Genève\""},
                "days": {"type": "integer", "default": 1},
                "units": {"type": ["string", "null"], "enum": ["c", "f"]},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
}


def call(name, arguments, call_id):
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


def called(content, *calls):
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


ZURICH = call("get_weather", {"city": "Zürich <1>", "days": 2, "deep": {"a": [1, 2.5, None, True]}}, "call00001")
TIME = call("clock", {}, "call00002")
RESULT = {"role": "tool", "content": '{"sky": "clear", "t": 21.5}', "tool_call_id": "call00001", "name": "get_weather"}
RESULT_2 = {"role": "tool", "content": "12:00", "tool_call_id": "call00002", "name": "clock"}

PARTS = {
    "role": "user",
    "content": [
        {"type": "text", "text": "Compare "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "text", "text": " and\n"},
        {"type": "image", "image": "x.png"},
        {"type": "text", "text": " please"},
    ],
}

CHATS = {
    "user": [HI],
    "system_user": [SYSTEM, HI],
    "turns": [SYSTEM, HI, HELLO, MORE],
    "ends_with_assistant": [HI, HELLO],
}
TOOL_CHATS = {
    "one_call": [HI, called(None, ZURICH), RESULT],
    "two_calls": [SYSTEM, HI, called("Let me see.", ZURICH, TIME), RESULT, RESULT_2, REASONED, MORE],
}
TOKENS = {
    "kimi_vl": ("[BOS]", "[EOS]"), "llama2": ("<s>", "</s>"), "llama3": ("<|begin_of_text|>", "<|eot_id|>"),
    "qwen": (None, "<|im_end|>"), "deepseek": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), "mistral": ("<s>", "</s>"),
    "seed_oss": ("<seed:bos>", "<seed:eos>"), "constructs": ("<s>", "</s>"), "python_repr": ("<s>", "</s>"),
}


def case(name, messages, tools=None, **extra):
    return {"name": name, "messages": messages, "tools": tools, "extra": extra}


def plain_cases():
    for name, messages in CHATS.items():
        yield case(name, messages)
        if messages[-1]["role"] == "user":
            yield case(f"{name}_prompt", messages, add_generation_prompt=True)


def tool_cases():
    for name, messages in TOOL_CHATS.items():
        yield case(name, messages, [WEATHER, CLOCK], add_generation_prompt=True)


def cases():
    """Template -> its cases."""
    out = {name: list(plain_cases()) for name in TOKENS if name not in ("constructs", "python_repr")}
    out["kimi_vl"] += [case("parts", [PARTS], add_generation_prompt=True), case("parts_later", [SYSTEM, HI, HELLO, PARTS])]
    out["llama2"] += [case("must_alternate", [HI, HI]), case("starts_with_assistant", [SYSTEM, HELLO])]
    out["llama3"] += [case("tools", [SYSTEM, HI], [WEATHER], add_generation_prompt=True),
                      case("call", [HI, called(None, ZURICH), RESULT], add_generation_prompt=True),
                      case("list_result", [HI, called(None, ZURICH), {"role": "ipython", "content": [1, {"a": "é"}]}]),
                      case("date", [SYSTEM, HI], date_string="1 Jan 2030"), *list(tool_cases())[1:]]
    out["qwen"] += [*tool_cases(), case("no_thinking", [HI], add_generation_prompt=True, enable_thinking=False),
                    case("thinking", [HI], add_generation_prompt=True, enable_thinking=True),
                    case("drops_old_thoughts", [HI, THOUGHT, MORE, THOUGHT]), case("reasoning_field", [HI, REASONED])]
    out["deepseek"] += [*tool_cases(), case("thoughts", [HI, THOUGHT, MORE], add_generation_prompt=True),
                        case("two_systems", [SYSTEM, HI, SYSTEM, MORE])]
    out["mistral"] += [*tool_cases(), case("short_id", [HI, called(None, call("clock", {}, "c1"))], [CLOCK]),
                       case("must_alternate", [HI, HI]), case("unknown_role", [HI, ODD_ROLE])]
    out["seed_oss"] += [*tool_cases(), case("skips_unknown_role", [HI, ODD_ROLE, HELLO]),
                        *(case(f"budget_{n}", [HI], add_generation_prompt=True, thinking_budget=n) for n in (0, 600, 16384, 99999))]
    text = {"role": "user", "content": "  hello world \n "}
    out["constructs"] = [case("one", [text]), case("two", [text, HELLO])]
    out["python_repr"] = [case("one", [HI])]
    return out


def render(template, bos_token, eos_token, one):
    """transformers always defines tools and documents (as none) and the special tokens that exist."""
    context = {"messages": one["messages"], "tools": one["tools"], "documents": None, "add_generation_prompt": False}
    context.update({k: v for k, v in (("bos_token", bos_token), ("eos_token", eos_token)) if v is not None})
    context.update(one["extra"])
    entry = {"name": one["name"], "context": context}
    try:
        return {**entry, "expected": template.render(**context)}
    except jinja2.exceptions.TemplateError as error:
        return {**entry, "error": str(error)}


def generate():
    for name, list_of_cases in cases().items():
        source = (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
        template = _compile_jinja_template(source)
        rendered = [render(template, *TOKENS[name], one) for one in list_of_cases]
        write_json(FOLDER / f"{name}.json", {"template": f"{name}.jinja", "cases": rendered})
