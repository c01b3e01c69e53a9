"""Chat templates as this server renders them, beside Jinja2 with transformers' additions.

For every file of the folders given, `perilune serve --chat-template FILE` on a free port of 127.0.0.1, and /v1/chat/completions/render
of every conversation. Equal is what one of the forms gives in which messages may be handed to a template: the content of who only calls
tools as "" or None, arguments as an object or as text. Exits with 1 where a text differs, or where only this server refuses.
"""

import argparse
import copy
import datetime
import json
import pathlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import jinja2.ext
import jinja2.nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

import conversations


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant says, for training."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_said"), [], [], body).set_lineno(line)

    def _said(self, caller):
        return caller()


def refuse(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def environment():
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return env


class Server:
    def __init__(self, binary, template):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [binary, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
        command += ["--chat-template", str(template), "--enable-tokenizer-info-endpoint"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(300):
            if self.process.poll() is not None:
                raise RuntimeError(self.process.stderr.read().strip())
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise RuntimeError("does not start")

    def stop(self):
        self.process.terminate()
        self.process.communicate()

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=30) as response:
            return json.load(response)

    def render(self, messages, request):
        """A text, or None and the words of the refusal."""
        messages = copy.deepcopy(messages)
        for call in calls(messages):
            call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
        body = json.dumps({"messages": messages, **request}).encode()
        post = urllib.request.Request(
            self.url + "/v1/chat/completions/render", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(post, timeout=30) as response:
                return json.load(response)["text"], ""
        except urllib.error.HTTPError as error:
            return None, json.load(error)["error"]["message"]


def calls(messages):
    return [call["function"] for message in messages for call in message.get("tool_calls", [])]


def references(template, names, messages, request):
    """What Jinja2 makes of each form of the messages; a form that it refuses is left out."""
    found = []
    for empty in ("", None):
        for as_text in (False, True):
            formed = copy.deepcopy(messages)
            for message in formed:
                if "tool_calls" in message and message["content"] is None:
                    message["content"] = empty
            for call in calls(formed):
                if as_text:
                    call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
            context = {
                **names,
                "messages": formed,
                "tools": copy.deepcopy(request.get("tools")),
                "documents": None,
                "add_generation_prompt": request.get("add_generation_prompt", True),
                **request.get("chat_template_kwargs", {}),
            }
            try:
                found.append(template.render(**context))
            except Exception:  # Whatever it is, the template takes no such message.
                pass
    return found


def special_names(info):
    names = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        token = info.get(key)
        token = token.get("content") if isinstance(token, dict) else token
        if token is not None:
            names[key] = token
    return names


def difference(expected, found):
    at = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), min(len(expected), len(found)))
    cut = slice(max(0, at - 30), at + 50)
    return f"jinja2 {expected[cut]!r}, here {found[cut]!r}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=pathlib.Path, help="with templates, *.jinja")
    parser.add_argument("--binary", default="target/release/perilune")
    args = parser.parse_args()
    files = sorted(file for folder in args.folders for file in folder.glob("*.jinja"))
    counts = dict.fromkeys(["equal", "refused by both", "tools not supported", "rendered here only", "refused here only", "different"], 0)
    for file in files:
        try:
            template = environment().from_string(file.read_text(encoding="utf-8"))
            server = Server(args.binary, file)
        except (jinja2.TemplateSyntaxError, RuntimeError) as error:
            print(f"{file.name}: {error}")
            counts["different"] += 1
            continue
        try:
            names = special_names(server.get("/tokenizer_info"))
            for name, (messages, request) in conversations.ALL.items():
                text, words = server.render(messages, request)
                expected = references(template, names, messages, request)
                if text is None and "`tools` is not supported" in words:
                    outcome = "tools not supported"
                elif text is None:
                    outcome = "refused here only" if expected else "refused by both"
                elif not expected:
                    outcome = "rendered here only"
                else:
                    # None may be a form, but not a word of the prompt.
                    words = text.count("None") > min(one.count("None") for one in expected)
                    outcome = "equal" if text in expected and not words else "different"
                counts[outcome] += 1
                if outcome == "refused here only":
                    print(f"{file.name}, {name}: {words}")
                if outcome == "different":
                    print(f"{file.name}, {name}: {difference(expected[0], text)}")
        finally:
            server.stop()
    print(f"{len(files)} templates, {len(conversations.ALL)} conversations: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    return 1 if counts["different"] + counts["refused here only"] else 0


if __name__ == "__main__":
    sys.exit(main())
