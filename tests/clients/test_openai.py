"""openai (Python), unmodified: what its users call every day."""
import asyncio
import json
import time
import urllib.request
from typing import Literal

import openai
import pytest
from conftest import HELLO, KEYED_URL, MODEL, TOOL, URL, needs_route
from openai import pydantic_function_tool
from pydantic import BaseModel

PICTURE = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Rating(BaseModel):
    kind: Literal["good", "bad"]
    sure: bool


class Weather(BaseModel):
    """Weather of a city"""

    city: Literal["Paris", "Oslo"]


def ask(client, **fields):
    return client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0, **fields)


def test_chat(client):
    answer = ask(client)
    choice = answer.choices[0]
    assert answer.object == "chat.completion" and answer.model == MODEL and answer.created > 0
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "stop" and choice.message.tool_calls is None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_what_the_whole_answer_says(client):
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert [delta.role for delta in deltas if delta.role] == ["assistant"]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )


def test_stream_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=HELLO, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    text = "".join(event.delta for event in events if event.type == "content.delta")
    assert text == final.choices[0].message.content != ""
    assert [event.content for event in events if event.type == "content.done"] == [text]


def test_stream_helper_parses_a_schema(client):
    with client.chat.completions.stream(model=MODEL, messages=HELLO, temperature=0, response_format=Rating) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Rating)
    assert any(event.type == "content.done" for event in events)


def test_stream_helper_gathers_calls(client):
    tools = [pydantic_function_tool(Weather)]
    with client.chat.completions.stream(model=MODEL, messages=HELLO, tools=tools, tool_choice="required") as stream:
        events = list(stream)
        final = stream.get_final_completion()
    done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert [event.name for event in done] == ["Weather"] * len(done) and done
    assert all(isinstance(call.function.parsed_arguments, Weather) for call in final.choices[0].message.tool_calls)


def test_parse_with_pydantic(client):
    answer = client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Rating)
    assert isinstance(answer.choices[0].message.parsed, Rating)


def test_parse_says_that_an_answer_was_cut_off(client):
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=MODEL, messages=HELLO, response_format=Rating, max_tokens=1)


def test_pydantic_function_tool(client):
    answer = client.chat.completions.parse(
        model=MODEL, messages=HELLO, tools=[pydantic_function_tool(Weather)], tool_choice="required"
    )
    calls = answer.choices[0].message.tool_calls
    assert calls and all(isinstance(call.function.parsed_arguments, Weather) for call in calls)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_and_its_result(client, choice):
    answer = ask(client, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False)
    [call] = answer.choices[0].message.tool_calls
    assert call.type == "function" and call.id and call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Paris", "Oslo")
    after = [*HELLO, answer.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "Rain"}]
    final = client.chat.completions.create(model=MODEL, messages=after, tools=[TOOL], tool_choice="none", max_tokens=8)
    assert final.choices[0].message.content and not final.choices[0].message.tool_calls


def test_logprobs(client):
    content = ask(client, logprobs=True, top_logprobs=3, max_tokens=4).choices[0].logprobs.content
    assert 1 <= len(content) <= 4
    assert all(len(token.top_logprobs) == 3 and token.logprob <= 0 for token in content)
    assert all(token.token.encode() == bytes(token.bytes) for token in content)


def test_several_answers(client):
    answer = ask(client, n=3, max_tokens=4)
    assert sorted(choice.index for choice in answer.choices) == [0, 1, 2]


def test_a_picture(client):
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PICTURE, "detail": "low"}}]
    answer = client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}], max_tokens=8)
    assert answer.choices[0].message.content


def test_completions(client):
    answer = client.completions.create(model=MODEL, prompt="Hello", max_tokens=4, temperature=0, echo=True, logprobs=2)
    assert answer.object == "text_completion" and answer.choices[0].text.startswith("Hello")
    assert len(answer.choices[0].logprobs.tokens) == len(answer.choices[0].logprobs.token_logprobs)
    whole = client.completions.create(model=MODEL, prompt="Hello", max_tokens=8, temperature=0)
    parts = client.completions.create(model=MODEL, prompt="Hello", max_tokens=8, temperature=0, stream=True)
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text


def test_embeddings_are_the_same_in_base64_and_as_numbers(client):
    packed = client.embeddings.create(model=MODEL, input=["ping", "pong"])
    plain = client.embeddings.create(model=MODEL, input=["ping", "pong"], encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1]
    for left, right in zip(packed.data, plain.data):
        assert len(left.embedding) == len(right.embedding) > 1
        assert left.embedding == pytest.approx(right.embedding, abs=1e-5)
        assert sum(x * x for x in left.embedding) == pytest.approx(1, abs=1e-3)


def test_models(client):
    listed = [model.id for model in client.models.list()]
    assert MODEL in listed
    assert client.models.retrieve(MODEL).object == "model"


def wait_for(client, batch_id, limit_s=600):
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        batch = client.batches.retrieve(batch_id)
        if batch.status in ("completed", "failed", "cancelled", "expired"):
            return batch
        time.sleep(0.05)
    raise TimeoutError(f"batch {batch_id} has not ended")


def test_a_batch_from_file_to_results(client):
    body = {"model": MODEL, "messages": HELLO, "max_tokens": 4}
    lines = [{"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body} for i in range(3)]
    data = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    assert file.bytes == len(data) and client.files.content(file.id).read() == data
    assert file.id in [listed.id for listed in client.files.list()]
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    batch = wait_for(client, batch.id)
    assert batch.status == "completed" and batch.request_counts.completed == 3
    assert batch.id in [listed.id for listed in client.batches.list()]
    results = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert sorted(line["custom_id"] for line in results) == ["0", "1", "2"]
    assert all(line["response"]["status_code"] == 200 for line in results)
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_errors_name_the_field(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, top_p=7)
    assert caught.value.param == "top_p" and caught.value.type == "invalid_request_error" and caught.value.request_id


def test_a_stream_is_refused_before_it_begins(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, top_p=7, stream=True)
    assert caught.value.param == "top_p"


def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other", messages=HELLO)
    assert caught.value.code == "model_not_found" and caught.value.param == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_keys(keyed):
    assert ask(keyed, max_tokens=1).choices
    with openai.OpenAI(base_url=f"{KEYED_URL}/v1", api_key="wrong", max_retries=0) as wrong:
        with pytest.raises(openai.AuthenticationError):
            ask(wrong, max_tokens=1)


def test_raw_response_carries_the_request_id(client):
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=HELLO, max_tokens=1, extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1" == raw.request_id
    assert "server-timing" in raw.headers and raw.parse().choices
    assert ask(client, max_tokens=1)._request_id


def test_with_streaming_response(client):
    with client.chat.completions.with_streaming_response.create(model=MODEL, messages=HELLO, max_tokens=1) as raw:
        assert raw.status_code == 200 and raw.parse().choices


def metric(name, label=""):
    """The sum of the series of a name that have a label."""
    with urllib.request.urlopen(f"{URL}/metrics", timeout=600) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name) and label in line)


def is_forgotten(leave):
    """Whether the answer ended because its client left. On a busy machine a client may leave before the server has its request, or after all
    of the answer: then another one does."""
    for _ in range(20):
        aborted = metric("vllm:request_success_total{", 'finished_reason="abort"')
        leave()
        until = time.monotonic() + 600
        while metric("vllm:num_requests_running{") and time.monotonic() < until:
            time.sleep(0.02)
        assert metric("vllm:num_requests_running{") == 0
        if metric("vllm:request_success_total{", 'finished_reason="abort"') > aborted:
            return True
    return False


def test_a_client_that_runs_out_of_time_is_forgotten(client):
    def leave():
        with pytest.raises(openai.APITimeoutError):
            ask(client.with_options(timeout=0.05), max_tokens=1500, extra_body={"ignore_eos": True})

    assert is_forgotten(leave)


def test_a_client_that_closes_its_stream_is_forgotten(client):
    def leave():
        stream = ask(client, stream=True, max_tokens=1500, extra_body={"ignore_eos": True})
        next(iter(stream))
        stream.close()
        assert ask(client, max_tokens=1).choices

    assert is_forgotten(leave)


def test_async():
    async def both():
        async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", timeout=600, max_retries=0) as client:
            answers = await asyncio.gather(*(ask(client) for _ in range(4)))
            text = ""
            async for chunk in await ask(client, stream=True):
                text += chunk.choices[0].delta.content or ""
            async with client.chat.completions.stream(model=MODEL, messages=HELLO, temperature=0) as stream:
                final = await stream.get_final_completion()
            return [answer.choices[0].message.content for answer in answers], text, final.choices[0].message.content

    answers, text, final = asyncio.run(both())
    assert {*answers} == {text} == {final} != {""}


@needs_route("/v1/responses")
class TestResponses:
    def test_create(self, client):
        answer = client.responses.create(model=MODEL, input="Hello!", max_output_tokens=16)
        assert answer.object == "response" and answer.output_text
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
        assert client.responses.retrieve(answer.id).output_text == answer.output_text
        again = client.responses.create(model=MODEL, input="And?", previous_response_id=answer.id, max_output_tokens=16)
        assert again.previous_response_id == answer.id
        client.responses.delete(answer.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(answer.id)

    def test_stream(self, client):
        events = list(client.responses.create(model=MODEL, input="Hello!", temperature=0, stream=True))
        assert events[0].type == "response.created" and events[-1].type == "response.completed"
        assert [event.sequence_number for event in events] == list(range(len(events)))
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert text == events[-1].response.output_text != ""

    def test_stream_helper(self, client):
        with client.responses.stream(model=MODEL, input="Hello!") as stream:
            list(stream)
            assert stream.get_final_response().output_text

    def test_parse(self, client):
        answer = client.responses.parse(model=MODEL, input="Hello!", text_format=Rating)
        assert isinstance(answer.output_parsed, Rating)

    def test_tools(self, client):
        tool = {"type": "function", "strict": True, **TOOL["function"]}
        answer = client.responses.create(model=MODEL, input="Hello!", tools=[tool], tool_choice="required")
        calls = [item for item in answer.output if item.type == "function_call"]
        assert calls and all(json.loads(call.arguments)["city"] in ("Paris", "Oslo") for call in calls)

    def test_a_call_and_its_result(self, client):
        tool = {"type": "function", "strict": True, **TOOL["function"]}
        first = client.responses.create(model=MODEL, input="Hello!", tools=[tool], tool_choice="required", parallel_tool_calls=False)
        call = first.output[-1]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain"}
        kept = client.responses.create(model=MODEL, input=[result], previous_response_id=first.id, temperature=0, max_output_tokens=16)
        # The same without the server's memory.
        items = [{"role": "user", "content": "Hello!"}, *(item.model_dump() for item in first.output), result]
        resent = client.responses.create(model=MODEL, input=items, temperature=0, max_output_tokens=16, store=False)
        assert kept.output_text == resent.output_text
        listed = [item.type for item in client.responses.input_items.list(kept.id, order="asc")]
        assert listed == ["message", *(item.type for item in first.output), "function_call_output"]

    def test_picture(self, client):
        content = [{"type": "input_text", "text": "What?"}, {"type": "input_image", "image_url": PICTURE, "detail": "auto"}]
        answer = client.responses.create(model=MODEL, input=[{"role": "user", "content": content}], max_output_tokens=16)
        assert answer.usage.input_tokens > 0

    def test_logprobs(self, client):
        include = ["message.output_text.logprobs"]
        answer = client.responses.create(model=MODEL, input="Hello!", include=include, top_logprobs=2, max_output_tokens=16)
        part = answer.output[0].content[0]
        assert b"".join(bytes(token.bytes) for token in part.logprobs).decode(errors="replace") == part.text
        assert all(len(token.top_logprobs) == 2 for token in part.logprobs)

    def test_background(self, client):
        stream = client.responses.create(model=MODEL, input="Hello!", background=True, stream=True, max_output_tokens=64)
        events = list(stream)
        assert [event.sequence_number for event in events] == list(range(len(events)))
        answer = client.responses.retrieve(events[0].response.id)
        assert answer.status in ("completed", "incomplete") and answer == events[-1].response
        rest = list(client.responses.retrieve(answer.id, stream=True, starting_after=events[3].sequence_number))
        assert rest == events[4:]
        assert client.responses.cancel(answer.id).status == answer.status
        begun = client.responses.create(model=MODEL, input="Hello!", background=True)
        assert client.responses.cancel(begun.id).status in ("cancelled", "completed")

    def test_refusals(self, client):
        for fields, param in [
            ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
            ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0].type"),
            ({"input": "x", "conversation": "c"}, "conversation"),
        ]:
            with pytest.raises(openai.BadRequestError) as caught:
                client.responses.create(model=MODEL, **fields)
            assert caught.value.param == param

    def test_count(self, client):
        counted = client.responses.input_tokens.count(model=MODEL, input="Hello!")
        answer = client.responses.create(model=MODEL, input="Hello!", max_output_tokens=1)
        assert counted.input_tokens == answer.usage.input_tokens
