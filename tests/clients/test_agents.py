"""LiteLLM, Instructor, Pydantic AI and OpenAI's Agents SDK, unmodified."""
import asyncio
import os
from typing import Literal

# Before litellm is imported: it would fetch its list of prices.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import instructor  # noqa: E402
import litellm  # noqa: E402
import openai  # noqa: E402
import pytest  # noqa: E402
from agents import (  # noqa: E402
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
    function_tool,
)
from conftest import HELLO, KEY, KEYED_URL, MODEL, TOOL, URL  # noqa: E402
from pydantic import BaseModel  # noqa: E402
from pydantic_ai import Agent as PydanticAgent  # noqa: E402
from pydantic_ai import NativeOutput, ToolOutput  # noqa: E402
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel as PydanticResponsesModel  # noqa: E402
from pydantic_ai.providers.openai import OpenAIProvider  # noqa: E402


class Rating(BaseModel):
    """A rating"""

    kind: Literal["good", "bad"]


# LiteLLM's names of the two ways to a server such as this one.
PROVIDERS = ["openai", "hosted_vllm"]


def lite(provider, **fields):
    base = dict(model=f"{provider}/{MODEL}", api_base=f"{URL}/v1", api_key="none", messages=HELLO, temperature=0, max_retries=0)
    return litellm.completion(**(base | fields))


@pytest.mark.parametrize("provider", PROVIDERS)
def test_litellm_completion_and_stream(provider):
    whole = lite(provider)
    assert whole.choices[0].message.content and whole.usage.total_tokens > 0
    chunks = list(lite(provider, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens


@pytest.mark.parametrize("provider", PROVIDERS)
def test_litellm_tools_and_schemas(provider):
    [call] = lite(provider, tools=[TOOL], tool_choice="required", parallel_tool_calls=False).choices[0].message.tool_calls
    assert call.function.name == "weather" and '"city"' in call.function.arguments
    answer = lite(provider, response_format=Rating)
    assert Rating.model_validate_json(answer.choices[0].message.content)


def test_litellm_text_embeddings_and_ranks():
    text = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="Hello", api_base=f"{URL}/v1", api_key="none", max_tokens=4)
    assert text.usage.completion_tokens <= 4
    embedded = litellm.embedding(model=f"openai/{MODEL}", input=["ping", "pong"], api_base=f"{URL}/v1", api_key="none")
    assert len(embedded.data) == 2 and len(embedded.data[0]["embedding"]) > 1
    ranked = litellm.rerank(model=f"hosted_vllm/{MODEL}", query="a circle", documents=["a square", "a circle"], api_base=URL, api_key="none")
    assert sorted(result["index"] for result in ranked.results) == [0, 1]


def test_litellm_responses():
    answer = litellm.responses(model=f"openai/{MODEL}", input="Hello!", api_base=f"{URL}/v1", api_key="none", temperature=0)
    assert answer.status == "completed" and answer.output[0].content[0].text


def test_litellm_errors_have_their_classes():
    with pytest.raises(litellm.NotFoundError):
        lite("openai", model="openai/another")
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        lite("openai", temperature=-1)
    with pytest.raises(litellm.AuthenticationError):
        lite("openai", api_base=f"{KEYED_URL}/v1", api_key="wrong")
    assert lite("openai", api_base=f"{KEYED_URL}/v1", api_key=KEY).choices
    with pytest.raises(litellm.ContextWindowExceededError):
        lite("openai", messages=[{"role": "user", "content": "word " * 20_000}])


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA], ids=lambda mode: mode.value)
def test_instructor(client, mode):
    made = instructor.from_openai(client, mode=mode)
    assert isinstance(made.create(model=MODEL, messages=HELLO, response_model=Rating, temperature=0, max_retries=1), Rating)


def test_instructor_partial(client):
    made = instructor.from_openai(client, mode=instructor.Mode.JSON_SCHEMA)
    parts = list(made.create_partial(model=MODEL, messages=HELLO, response_model=Rating, temperature=0))
    assert parts[-1].kind in ("good", "bad")


PYDANTIC = [OpenAIChatModel, PydanticResponsesModel]


def pydantic(kind, **fields):
    model = kind(MODEL, provider=OpenAIProvider(base_url=f"{URL}/v1", api_key="none"))
    return PydanticAgent(model, model_settings={"temperature": 0}, **fields)


@pytest.mark.parametrize("kind", PYDANTIC)
def test_pydantic_ai_answers_and_streams(kind):
    agent = pydantic(kind, instructions="Be brief.")
    whole = agent.run_sync("Hello!")
    assert whole.output and whole.usage.total_tokens > 0
    with agent.run_stream_sync("Hello!") as stream:
        assert "".join(stream.stream_text(delta=True)) == whole.output


@pytest.mark.parametrize("kind", PYDANTIC)
def test_pydantic_ai_output_types(kind):
    for output in (NativeOutput(Rating), ToolOutput(Rating)):
        assert isinstance(pydantic(kind, output_type=output).run_sync("Hello!").output, Rating)


def openai_agent(kind, **fields):
    model = kind(model=MODEL, openai_client=openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0))
    settings = {"temperature": 0} | fields.pop("settings", {})
    return Agent(name="one", instructions="Be brief.", model=model, model_settings=ModelSettings(**settings), **fields)


AGENTS = [OpenAIChatCompletionsModel, OpenAIResponsesModel]
QUIET = RunConfig(tracing_disabled=True)


@pytest.mark.parametrize("kind", AGENTS)
def test_agents_answers_and_schemas(kind):
    assert Runner.run_sync(openai_agent(kind), "Hello!", run_config=QUIET).final_output
    rated = Runner.run_sync(openai_agent(kind, output_type=Rating), "Hello!", run_config=QUIET)
    assert isinstance(rated.final_output, Rating)


@pytest.mark.parametrize("kind", AGENTS)
def test_agents_call_a_function_and_stream(kind):
    asked = []

    @function_tool
    def weather(city: Literal["Paris", "Oslo"]) -> str:
        """Weather of a city"""
        asked.append(city)
        return "rain"

    agent = openai_agent(kind, tools=[weather], settings={"tool_choice": "required"})

    async def run():
        result = Runner.run_streamed(agent, "Hello!", run_config=QUIET)
        return [event.type async for event in result.stream_events()], result.final_output

    events, output = asyncio.run(run())
    assert asked and set(asked) <= {"Paris", "Oslo"}
    assert output and {"raw_response_event", "run_item_stream_event"} <= set(events)
