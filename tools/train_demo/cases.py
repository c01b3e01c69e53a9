"""Held-out cases of the formats beside plain answers, as plain data: a thought before the answer, an answer as JSON, tools.

A case about a picture says its number and is drawn from its scene; `scenes` is what the numbers count.
"""

import structured
import thinking
from chat import small_talk
from prompt import api_call
from questions import ask
from tools import answer_with, call_question, draw_result, draw_tools


def thinking_case(rng, scenes):
    """{picture, kind, question, thought, answer}; two of three about a picture, else picture is null."""
    if rng.random() < 0.67:
        picture = int(rng.integers(len(scenes)))
        kind, question, answer = ask(scenes[picture], rng)
        thought = thinking.about_scene(scenes[picture], kind, question, answer)
    else:
        picture, (kind, question, answer) = None, small_talk(rng, wanted=True)
        thought = thinking.about_text(kind, answer)
    return {"picture": picture, "kind": kind, "question": question, "thought": thought, "answer": answer}


def json_case(rng, scenes):
    """{picture, kind, question, value}; the question asks for JSON."""
    if rng.random() < 0.75:
        picture = int(rng.integers(len(scenes)))
        kind, question, answer = ask(scenes[picture], rng)
        value = structured.about_scene(scenes[picture], kind, answer)
    else:
        picture, (kind, question, answer) = None, small_talk(rng, wanted=True)
        value = structured.about_text(kind, answer)
    return {"picture": picture, "kind": kind, "question": structured.asking(rng, question), "value": value}


def tool_case(rng):
    """{kind, tools, messages, calls or answer}: the messages wait for calls (kind "call", two at once "calls"), for the sentence that
    repeats their results ("result"), or for the answer to a question that no tool fits ("none")."""
    tools = draw_tools(rng)
    asked = call_question(rng, tools, wanted=True)
    if asked is None or rng.random() < 0.15:
        kinds = {t.kind for t in tools}
        usable = ["said"] if "calculate" in kinds else ["sum", "said"]
        _, question, answer = small_talk(rng, wanted=True, kind=usable[rng.integers(len(usable))])
        return {"kind": "none", "tools": [t.declared for t in tools], "messages": [{"role": "user", "content": question}], "answer": answer}
    question, wanted = asked
    case = {"kind": "call" if len(wanted) == 1 else "calls", "tools": [t.declared for t in tools], "messages": [{"role": "user", "content": question}]}
    calls = [api_call(tool, arguments, i) for i, (tool, arguments) in enumerate(wanted)]
    if rng.random() < 0.6:
        return case | {"calls": calls}
    results = [draw_result(rng, tool.kind) for tool, _ in wanted]
    case["messages"] += [{"role": "assistant", "content": None, "tool_calls": calls}]
    case["messages"] += [{"role": "tool", "tool_call_id": call["id"], "content": result} for call, result in zip(calls, results)]
    return case | {"kind": "result", "answer": "".join(answer_with(results))}
