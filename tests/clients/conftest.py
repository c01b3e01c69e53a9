"""The server under test, and clients of it: CLIENTS_URL and CLIENTS_KEYED_URL name two running servers of tests/clients/run."""
import json
import os
import urllib.request

import openai
import pytest

URL = os.environ["CLIENTS_URL"]
KEYED_URL = os.environ["CLIENTS_KEYED_URL"]
KEY = os.environ["CLIENTS_KEY"]
MODEL = "perilune-demo"

HELLO = [{"role": "user", "content": "Hello!"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Oslo"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def routes():
    with urllib.request.urlopen(f"{URL}/openapi.json", timeout=600) as answer:
        return set(json.load(answer)["paths"])


ROUTES = routes()


def needs_route(path):
    return pytest.mark.skipif(path not in ROUTES, reason=f"the server has no {path}")


@pytest.fixture
def client():
    with openai.OpenAI(base_url=f"{URL}/v1", api_key="none", timeout=600, max_retries=0) as client:
        yield client


@pytest.fixture
def keyed():
    with openai.OpenAI(base_url=f"{KEYED_URL}/v1", api_key=KEY, timeout=600, max_retries=0) as client:
        yield client
