"""The evaluation harness lm-eval, unmodified, with the server's own tokenizer: no tokenizer is downloaded."""
import json
import math
import os
import urllib.request

import pytest
import yaml

# Before anything of Hugging Face is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import lm_eval  # noqa: E402
from conftest import MODEL, URL  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

DOCS = [
    {"text": "What is 2 + 3? It is", "choices": [" 5", " seven"], "gold": 0},
    {"text": "The circle is", "choices": [" red and", " 8"], "gold": 1},
    {"text": "Hello!", "choices": [" Hello", "?"], "gold": 0},
]
TASKS = {
    "choices": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}],
    },
    "generated": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{choices[gold]}}",
        "generation_kwargs": {"until": ["\n", "."], "max_gen_toks": 12},
        "metric_list": [{"metric": "exact_match"}],
    },
}


def ask(path, **fields):
    request = urllib.request.Request(f"{URL}{path}", json.dumps(fields).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    os.environ["HF_HOME"] = str(folder / "cache")
    docs = folder / "docs.jsonl"
    docs.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, task in TASKS.items():
        data = {"task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(docs)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(data | task))
    return folder


def run(folder, task, model="local-completions", path="/v1/completions", **more):
    """What the model said to each document, in their order."""
    arguments = {"base_url": f"{URL}{path}", "model": MODEL, "num_concurrent": 2, "max_retries": 1}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(model=model, model_args=arguments, tasks=[task], task_manager=manager, **more)
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


def tokens(text):
    return ask("/tokenize", prompt=text, add_special_tokens=False)["tokens"]


def logprobs(prompt):
    """Of every token of a prompt but the first, and whether each is the likeliest."""
    answer = ask("/v1/completions", model=MODEL, prompt=prompt, max_tokens=0, echo=True, logprobs=1)
    report = answer["choices"][0]["logprobs"]
    return [
        (value, value >= max(top.values()))
        for value, top in zip(report["token_logprobs"][1:], report["top_logprobs"][1:], strict=True)
    ]


def test_loglikelihoods_are_the_servers(folder):
    for doc, said in zip(DOCS, run(folder, "choices"), strict=True):
        for choice, [(value, is_greedy)] in zip(doc["choices"], said, strict=True):
            context, whole = tokens(doc["text"]), tokens(doc["text"] + choice)
            of_choice = logprobs(whole)[len(context) - 1 :]
            assert math.isclose(value, sum(one for one, _ in of_choice), abs_tol=1e-4)
            assert is_greedy == all(likeliest for _, likeliest in of_choice)


def test_rolling_loglikelihoods_begin_after_the_first_token(folder):
    first = tokens(json.load(urllib.request.urlopen(f"{URL}/tokenizer_info", timeout=600))["bos_token"])
    assert len(first) == 1
    for doc, [[said]] in zip(DOCS, run(folder, "rolling"), strict=True):
        expected = sum(one for one, _ in logprobs(first + tokens(doc["text"])))
        assert math.isclose(said, expected, abs_tol=1e-4)


def test_completions(folder):
    for doc, [[said]] in zip(DOCS, run(folder, "generated"), strict=True):
        fields = {"max_tokens": 12, "temperature": 0, "stop": ["\n", "."]}
        answer = ask("/v1/completions", model=MODEL, prompt=tokens(doc["text"]), **fields)
        assert said == answer["choices"][0]["text"]


def test_chat_completions(folder):
    chat = {"model": "local-chat-completions", "path": "/v1/chat/completions", "apply_chat_template": True}
    for doc, [[said]] in zip(DOCS, run(folder, "generated", **chat), strict=True):
        messages = [{"role": "user", "content": doc["text"]}]
        fields = {"max_tokens": 12, "temperature": 0, "stop": ["\n", "."]}
        answer = ask("/v1/chat/completions", model=MODEL, messages=messages, **fields)
        assert said == answer["choices"][0]["message"]["content"]
