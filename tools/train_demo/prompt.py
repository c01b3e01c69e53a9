"""Prompts of whole conversations, in the messages of the API: the same text as the chat template's, as tokens."""

from chat import DEFAULT_SYSTEM
from tools import to_json
from words import THINK, THINK_END


def prompt(words, messages, num_tokens=0, tools=None, thinking=False):
    """Tokens of a conversation that waits for its next answer. messages: as in the API, arguments of calls as objects; tools: what
    is declared; num_tokens > 0 puts a picture of as many tokens before the text of the first user turn."""
    out = [] if not tools else words.declare(to_json(tools))
    if messages[0]["role"] != "system":
        out += words.system(DEFAULT_SYSTEM)
    picture = words.picture(num_tokens) if num_tokens else []
    for message in messages:
        role, text = message["role"], message.get("content") or ""
        if role == "tool":
            out += words.result(message["tool_call_id"], text)
            continue
        out += words.open(role)
        if role == "user":
            out, picture = out + picture, []
        out += words.text(text.split(THINK_END)[-1] if role == "assistant" else text)
        out += words.text(calls_text(message["tool_calls"])) if message.get("tool_calls") else []
        out.append(words.end)
    return out + words.open("assistant") + (words.text(THINK) if thinking else [])


def calls_text(calls):
    """A section of calls, as the model writes it."""
    parts = [f"<|tool_call_begin|>{c['id']}<|tool_call_argument_begin|>{to_json(c['function']['arguments'])}<|tool_call_end|>" for c in calls]
    return f"<|tool_calls_section_begin|>{''.join(parts)}<|tool_calls_section_end|>"


def api_call(tool, arguments, number):
    """One call as the API has it, but with arguments as an object."""
    return {"id": f"functions.{tool.name}:{number}", "type": "function", "function": {"name": tool.name, "arguments": arguments}}
