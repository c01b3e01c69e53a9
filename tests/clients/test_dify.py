"""Dify's OpenAI-API-compatible provider: its requests replayed, its answers parsed as it parses them, with nothing but urllib."""
import json
import urllib.error
import urllib.request

import pytest
from conftest import MODEL, TOOL, URL
from test_openai import PICTURE

BASES = [pytest.param(URL, id="bare"), pytest.param(f"{URL}/v1", id="v1")]
PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]
SETTINGS = {"temperature": 0, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0, "max_tokens": 64, "user": "u-1"}


def post(base, path, body, headers=()):
    request = urllib.request.Request(f"{base}/{path}", json.dumps(body).encode(), dict(headers))
    request.add_header("Content-Type", "application/json")
    return urllib.request.urlopen(request, timeout=600)


def ask(base, path, body, headers=()):
    with post(base, path, body, headers) as answer:
        return json.load(answer)


def refusal(path, body):
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(URL, path, body)
    with caught.value as answer:
        return answer.code, json.load(answer)["error"]


def events(base, body):
    """Splits at empty lines alone; what does not begin with `:` is `data: ` and JSON with `choices`; `[DONE]` is passed over."""
    with post(base, "chat/completions", body | {"stream": True, "stream_options": {"include_usage": True}}) as answer:
        pieces = answer.read().decode().split("\n\n")
    for piece in pieces:
        piece = piece.strip()
        if not piece or piece.startswith(":"):
            continue
        data = piece.removeprefix("data: ")
        if data == "[DONE]":
            continue
        event = json.loads(data)
        assert "choices" in event, event
        yield event


def gather(base, body):
    """Text, thinking, calls, finish reason and usage; calls are merged by id, else into the last one, whatever their index."""
    text, thinking, calls, finish, usage = "", "", [], None, None
    for event in events(base, body):
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            finish = choice["finish_reason"]
            delta = choice["delta"]
            text += delta.get("content") or ""
            thinking += delta.get("reasoning") or delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls") or []:
                if call.get("id") and call["id"] not in [known["id"] for known in calls]:
                    calls.append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
                calls[-1]["arguments"] += call["function"].get("arguments") or ""
    return text, thinking, calls, finish, usage


@pytest.mark.parametrize("base", BASES)
def test_credentials_of_a_chat_model(base):
    ping = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "ping"}]}
    assert ask(base, "chat/completions", ping)["object"] == "chat.completion"
    with post(base, "chat/completions", ping | {"stream": True, "max_tokens": 10}) as answer:
        assert answer.status == 200 and answer.read().endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("base", BASES)
def test_credentials_of_a_completion_model(base):
    assert ask(base, "completions", {"model": MODEL, "max_tokens": 5, "prompt": "ping"})["object"] == "text_completion"


@pytest.mark.parametrize("base", BASES)
def test_chat(base):
    body = {"model": MODEL, "messages": PROMPT, **SETTINGS, "stop": ["Observation:"]}
    whole = ask(base, "chat/completions", body)
    text, _, calls, finish, usage = gather(base, body)
    message = whole["choices"][0]["message"]
    assert text == message["content"] and not calls
    assert finish == whole["choices"][0]["finish_reason"]
    assert usage["prompt_tokens"] == whole["usage"]["prompt_tokens"] and usage["completion_tokens"] > 0


@pytest.mark.parametrize(
    "extended",
    [
        {"chat_template_kwargs": {"enable_thinking": False, "thinking": False}},
        {"thinking": {"type": "disabled"}},
        {"enable_thinking": False},
        {"reasoning_format": "auto"},
        {"reasoning_effort": "low"},
        {"max_completion_tokens": 8},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_extended_fields_are_taken(extended):
    text, thinking, _, finish, _ = gather(URL, {"model": MODEL, "messages": PROMPT, "max_tokens": 8, **extended})
    assert (text or thinking) and finish in ("stop", "length")


def test_tools_and_their_results():
    body = {"model": MODEL, "messages": PROMPT, **SETTINGS, "max_tokens": 1000, "tools": [TOOL]}
    assert gather(URL, body | {"tool_choice": "auto", "max_tokens": 16})[3] in ("stop", "length", "tool_calls")
    _, _, calls, finish, _ = gather(URL, body | {"tool_choice": "required"})
    assert finish == "tool_calls" and len({call["id"] for call in calls}) == len(calls) > 0
    assert all(json.loads(call["arguments"])["city"] in ("Paris", "Oslo") for call in calls)
    asked = [{"id": c["id"], "type": "function", "function": {"name": c["name"], "arguments": c["arguments"]}} for c in calls]
    results = [{"role": "tool", "tool_call_id": call["id"], "content": "Rain", "name": call["name"]} for call in calls]
    after = [*PROMPT, {"role": "assistant", "content": "", "tool_calls": asked}, *results]
    assert gather(URL, body | {"messages": after, "tool_choice": "auto", "max_tokens": 16})[3]


def test_functions_of_the_older_kind():
    body = {"model": MODEL, "messages": PROMPT, **SETTINGS, "functions": [TOOL["function"]], "function_call": "auto"}
    assert ask(URL, "chat/completions", body)["choices"][0]["finish_reason"]


SCHEMA = TOOL["function"]["parameters"]


@pytest.mark.parametrize(
    "format",
    [
        {"type": "text"},
        {"type": "json_object"},
        {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}},
        {"type": "json_schema", "json_schema": SCHEMA},
    ],
    ids=["text", "json_object", "json_schema", "json_schema without envelope"],
)
def test_response_format(format):
    body = {"model": MODEL, "messages": PROMPT, **SETTINGS, "max_tokens": 1000, "response_format": format}
    text, _, _, finish, _ = gather(URL, body)
    if format["type"] == "json_schema":
        assert finish == "stop" and json.loads(text)["city"] in ("Paris", "Oslo")
    elif format["type"] == "json_object" and finish == "stop":
        assert isinstance(json.loads(text), dict)
    assert text


def parts_with(url):
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "high"}}, {"type": "text", "text": "What is it?"}]
    return {"model": MODEL, "messages": [{"role": "user", "content": parts}], "max_tokens": 8}


def test_a_picture():
    assert gather(URL, parts_with(PICTURE))[0]


@pytest.mark.parametrize("url", ["data:video/mp4;base64,AAAA", "data:audio/mpeg;base64,AAAA"])
def test_media_that_are_no_pictures_are_a_clean_400(url):
    code, error = refusal("chat/completions", parts_with(url))
    assert code == 400 and error["message"] and error["param"].startswith("messages")


def test_a_document_is_a_clean_400():
    part = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AAAA", "filename": "a.pdf"}}
    code, error = refusal("chat/completions", {"model": MODEL, "messages": [{"role": "user", "content": [part]}]})
    assert code == 400 and error["param"].startswith("messages")


def test_unknown_kinds_of_tools_are_a_clean_400():
    code, error = refusal("chat/completions", {"model": MODEL, "messages": PROMPT, "tools": [{"type": "web_search"}]})
    assert code == 400 and error["param"].startswith("tools")


@pytest.mark.parametrize("base", BASES)
def test_embeddings(base):
    # Without a key it sends an empty header.
    answer = ask(base, "embeddings", {"model": MODEL, "input": ["ping", "pong"]}, {"Authorization": ""})
    assert [len(one["embedding"]) > 1 for one in answer["data"]] == [True, True]
    assert answer["usage"]["total_tokens"] >= answer["usage"]["prompt_tokens"] > 0


@pytest.mark.parametrize("base", BASES)
def test_rerank(base):
    documents = ["a red circle", {"content": [{"type": "text", "text": "a sum"}]}, "Hello!"]
    answer = ask(base, "rerank", {"model": MODEL, "query": "circle", "documents": documents, "top_n": 2})
    assert len(answer["results"]) == 2
    assert all(0 <= one["index"] < 3 and isinstance(one["relevance_score"], float) for one in answer["results"])
