"""LlamaIndex's OpenAILike and LangChain's ChatOpenAI, unmodified."""
from typing import Literal

from conftest import MODEL, URL
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel


class Rating(BaseModel):
    """A rating"""

    kind: Literal["good", "bad"]


def like(**fields):
    base = dict(model=MODEL, api_base=f"{URL}/v1", api_key="none", temperature=0, max_tokens=24, max_retries=0)
    return OpenAILike(**(base | fields))


def chain(**fields):
    base = dict(model=MODEL, base_url=f"{URL}/v1", api_key="none", temperature=0, max_retries=0)
    return ChatOpenAI(**(base | fields))


def test_llama_index_chat_and_stream():
    llm = like(is_chat_model=True)
    messages = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hello!")]
    whole = llm.chat(messages).message.content
    assert whole
    assert list(llm.stream_chat(messages))[-1].message.content == whole


def test_llama_index_complete_and_stream():
    for is_chat_model in (True, False):
        llm = like(is_chat_model=is_chat_model)
        whole = llm.complete("Hello!").text
        assert whole
        assert list(llm.stream_complete("Hello!"))[-1].text == whole


def test_langchain_invoke_and_stream():
    llm = chain()
    answer = llm.invoke("Hello!")
    assert answer.content and answer.usage_metadata["total_tokens"] > 0
    assert "".join(part.content for part in llm.stream("Hello!")) == answer.content


def test_langchain_tools():
    answer = chain().bind_tools([Rating], tool_choice="required", strict=True).invoke("Hello!")
    assert answer.tool_calls and all(call["args"]["kind"] in ("good", "bad") for call in answer.tool_calls)


def test_langchain_structured_output():
    for method in ("json_schema", "function_calling"):
        llm = chain().with_structured_output(Rating, method=method, strict=True)
        assert isinstance(llm.invoke("Hello!"), Rating)


def test_langchain_embeddings():
    # Its default sends token ids of OpenAI's own tokenizer; for other models it has this switch.
    embeddings = OpenAIEmbeddings(model=MODEL, base_url=f"{URL}/v1", api_key="none", check_embedding_ctx_length=False)
    assert len(embeddings.embed_query("ping")) > 1
