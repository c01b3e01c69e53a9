"""anthropic (Python), unmodified, against /v1/messages; passed over, and said so, while the server has no such route."""
import anthropic
import pytest
from conftest import HELLO, MODEL, TOOL, URL, needs_route

pytestmark = needs_route("/v1/messages")

WEATHER = {"name": "weather", "description": "Weather", "input_schema": TOOL["function"]["parameters"]}


@pytest.fixture
def claude():
    with anthropic.Anthropic(base_url=URL, api_key="none", timeout=600, max_retries=0) as client:
        yield client


def test_messages(claude):
    answer = claude.messages.create(model=MODEL, max_tokens=32, messages=HELLO, system="Be brief.")
    assert answer.type == "message" and answer.role == "assistant"
    assert answer.content[0].type == "text" and answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.usage.input_tokens > 0 and answer.usage.output_tokens > 0


def test_stream(claude):
    with claude.messages.stream(model=MODEL, max_tokens=32, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text != ""
    assert final.stop_reason in ("end_turn", "max_tokens") and final.usage.output_tokens > 0


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "weather"}])
def test_a_call_and_its_result(claude, choice):
    fields = dict(model=MODEL, tools=[WEATHER])
    answer = claude.messages.create(max_tokens=1000, messages=HELLO, tool_choice=choice, **fields)
    call = next(block for block in answer.content if block.type == "tool_use")
    assert answer.stop_reason == "tool_use" and call.name == "weather" and call.input["city"] in ("Paris", "Oslo")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "Rain"}
    after = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert claude.messages.create(max_tokens=8, messages=after, tool_choice={"type": "none"}, **fields).content


def test_a_streamed_call(claude):
    fields = dict(model=MODEL, tools=[WEATHER], tool_choice={"type": "any"})
    with claude.messages.stream(max_tokens=1000, messages=HELLO, **fields) as stream:
        final = stream.get_final_message()
    assert next(block for block in final.content if block.type == "tool_use").input["city"] in ("Paris", "Oslo")


def test_count_tokens(claude):
    counted = claude.messages.count_tokens(model=MODEL, messages=HELLO)
    usage = claude.messages.create(model=MODEL, max_tokens=1, messages=HELLO).usage
    # What the cache held is counted apart.
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_errors(claude):
    with pytest.raises(anthropic.BadRequestError) as caught:
        claude.messages.create(model=MODEL, max_tokens=8, messages=HELLO, extra_body={"top_p": 7})
    assert caught.value.body["type"] == "error" and "top_p" in caught.value.body["error"]["message"]
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="other", max_tokens=8, messages=HELLO)
