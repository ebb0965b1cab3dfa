"""A small model server that speaks OpenAI's chat completions and makes up text of its own.

The model is a Markov chain over the words of `corpus.txt`: it is no good at conversation, but it
generates token by token, stops by itself, counts what it read and wrote by its own tokenizer, and
tells so in `usage`, as a real server does.
"""

import asyncio
import json
import random
import re
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODELS = ("inf-chat-v1", "inf-chat-fin-v1", "inf-med-chat-v1", "inf-chat-int-v1")

# Words with the space before them, single Chinese characters, and whatever else there is.
_TOKEN = re.compile(r" ?[A-Za-z']+|[\u4e00-\u9fff]| ?\d+|\s+|[^\sA-Za-z\d\u4e00-\u9fff]")

_END = "\n\n"

# How often the model leaves a beaten track: where only one token ever followed the last two, it
# looks at the last one alone, or it would recite whole sentences of its corpus.
_BACK_OFF = 0.25

_PARAGRAPHS = (2, 4)  # of one answer
_CAP_DEFAULT = 400  # tokens, where the request names no cap
_CHOICES_MAX = 8


def tokenize(text: str) -> list[str]:
    """Cut a text into the model's tokens."""
    return _TOKEN.findall(text)


class MarkovModel:
    """Continues a text by what followed the same two tokens, or the same one, in its corpus."""

    def __init__(self, corpus: str) -> None:
        self._after: dict[tuple[str, ...], list[str]] = defaultdict(list)
        self._starts: list[tuple[str, str]] = []
        for paragraph in corpus.split(_END):
            tokens = [*tokenize(paragraph.strip()), _END]
            self._starts.append((tokens[0], tokens[1]))
            for at in range(len(tokens) - 1):
                self._after[tokens[at],].append(tokens[at + 1])
                if at > 0:
                    self._after[tokens[at - 1], tokens[at]].append(tokens[at + 1])

    def generate(self, prompt: str, choice: int) -> Iterator[str]:
        """Yield tokens until the model ends by itself; one prompt gives one text."""
        rng = random.Random(f"{choice}:{prompt}")
        in_chinese = bool(re.search(r"[\u4e00-\u9fff]", prompt))
        starts = [s for s in self._starts if (s[0] > "\u4e00") == in_chinese]
        for number in range(rng.randint(*_PARAGRAPHS)):
            if number:
                yield "\n"
            yield from self._paragraph(rng, rng.choice(starts))

    def _paragraph(self, rng: random.Random, last: tuple[str, str]) -> Iterator[str]:
        yield from last
        while True:
            options = self._after[last]
            if len(options) == 1 and rng.random() < _BACK_OFF:
                options = self._after[last[1:]]
            token = rng.choice(options)
            if token == _END:
                return
            yield token
            last = (last[-1], token)


class ModelServer:
    """The routes of the server; `log` keeps the usage of each answer that was begun."""

    def __init__(self, pace_s: float) -> None:
        self._model = MarkovModel(Path(__file__).with_name("corpus.txt").read_text("utf-8"))
        self._pace_s = pace_s
        self.log: list[dict[str, Any]] = []

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        data = [{"id": name, "object": "model", "owned_by": "examples"} for name in MODELS]
        return JSONResponse({"object": "list", "data": data})

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        try:
            asked = await request.json()
        except ValueError:
            return _bad_request("The body is not JSON.", None)
        for param, is_right, expected in _RULES:
            if not is_right(asked.get(param) if isinstance(asked, dict) else None):
                return _bad_request(f"{param!r} has to be {expected}.", param)
        prompt = "\n".join(_text_of(message.get("content")) for message in asked["messages"])
        choices = asked.get("n") or 1
        cap = asked.get("max_completion_tokens") or asked.get("max_tokens") or _CAP_DEFAULT
        answer = _Answer(self, asked, prompt, choices, cap)
        if asked.get("stream") is True:
            options = asked.get("stream_options") or {}
            events = answer.events(bool(options.get("include_usage")))
            return StreamingResponse(events, media_type="text/event-stream")
        return JSONResponse(await answer.whole())

    async def tokens(self, prompt: str, choice: int, cap: int) -> AsyncIterator[tuple[str, str]]:
        """Yield the tokens of one choice with its finish reason ("" but for the last)."""
        for number, token in enumerate(self._model.generate(prompt, choice)):
            if number == cap:
                yield "", "length"
                return
            yield token, ""
            await asyncio.sleep(self._pace_s)
        yield "", "stop"


class _Answer:
    """One answer of the model, whole or as events."""

    def __init__(
        self, server: ModelServer, asked: dict[str, Any], prompt: str, choices: int, cap: int
    ) -> None:
        self._server = server
        self._prompt = prompt
        self._choices = choices
        self._cap = cap
        self._tool = _tool_of(asked)
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": asked["model"],
        }
        self._usage = {"prompt_tokens": len(tokenize(prompt)), "completion_tokens": 0}
        server.log.append({"model": self._head["model"], **self._usage})
        self._logged = server.log[-1]

    async def whole(self) -> dict[str, Any]:
        """Return the whole completion."""
        choices = []
        for index in range(self._choices):
            message: dict[str, Any] = {"role": "assistant", "content": ""}
            finish = ""
            async for delta, finish in self._deltas(index):  # noqa: B007 - the last one counts
                message["content"] += delta.get("content", "")
                if self._tool is not None:
                    message |= {"content": None, "tool_calls": [self._tool]}
            choices.append({"index": index, "message": message, "finish_reason": finish})
        return {
            **self._head,
            "object": "chat.completion",
            "choices": choices,
            "usage": self._total(),
        }

    async def events(self, with_usage: bool) -> AsyncIterator[bytes]:
        """Yield the completion as server-sent events."""
        extra: dict[str, Any] = {"usage": None} if with_usage else {}
        head = {**self._head, "object": "chat.completion.chunk"}
        for index in range(self._choices):
            role = {"role": "assistant"}  # in the first chunk of each choice
            async for delta, reason in self._deltas(index):
                choice = {"index": index, "delta": role | delta, "finish_reason": reason or None}
                yield _event({**head, "choices": [choice], **extra})
                role = {}
        if with_usage:
            yield _event({**head, "choices": [], "usage": self._total()})
        yield b"data: [DONE]\n\n"

    async def _deltas(self, index: int) -> AsyncIterator[tuple[dict[str, Any], str]]:
        if self._tool is not None:
            self._count(len(tokenize(json.dumps(self._tool))))
            yield {"tool_calls": [{"index": 0, **self._tool}]}, "tool_calls"
            return
        async for token, reason in self._server.tokens(self._prompt, index, self._cap):
            if token:
                self._count(1)
            yield {"content": token}, reason

    def _count(self, tokens: int) -> None:
        self._usage["completion_tokens"] += tokens
        self._logged.update(self._usage)

    def _total(self) -> dict[str, int]:
        return {**self._usage, "total_tokens": sum(self._usage.values())}


def _event(payload: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


def _bad_request(message: str, param: str | None) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": None}
    return JSONResponse({"error": error}, 400)


def _is_count(value: Any, most: float = float("inf")) -> bool:
    return value is None or (type(value) is int and 1 <= value <= most)


def _is_message(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    content = value.get("content")  # null beside a tool call
    parts = content if isinstance(content, list) else []
    return isinstance(content, str | list | None) and all(
        isinstance(part, dict) and isinstance(part.get("text", ""), str) for part in parts
    )


def _is_tool(value: Any) -> bool:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    schema = function.get("parameters", {})
    return isinstance(schema, dict) and isinstance(schema.get("properties", {}), dict)


# What each parameter has to be, in the order in which it is looked at.
_RULES: list[tuple[str, Callable[[Any], bool], str]] = [
    ("model", lambda v: isinstance(v, str) and v != "", "the name of a model"),
    (
        "messages",
        lambda v: isinstance(v, list) and v != [] and all(map(_is_message, v)),
        "a list of one message or more",
    ),
    ("n", lambda v: _is_count(v, _CHOICES_MAX), f"a whole number from 1 to {_CHOICES_MAX}"),
    ("max_tokens", _is_count, "a whole number from 1"),
    ("max_completion_tokens", _is_count, "a whole number from 1"),
    ("stream", lambda v: isinstance(v, bool | None), "true or false"),
    ("stream_options", lambda v: isinstance(v, dict | None), "an object"),
    (
        "tools",
        lambda v: v is None or (isinstance(v, list) and all(map(_is_tool, v))),
        "a list of functions, each with a name",
    ),
]


def _text_of(content: str | list[dict[str, str]] | None) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""


def _tool_of(asked: dict[str, Any]) -> dict[str, Any] | None:
    """Return a call of the tool that the user has just named, with the last word as argument."""
    last = asked["messages"][-1]
    # After a tool's result the model answers in words; calling again would never end.
    words = re.findall(r"\w+", _text_of(last.get("content"))) if last.get("role") == "user" else []
    for tool in asked.get("tools") or ():
        function = tool["function"]
        if function["name"] not in words:
            continue
        names = list(function.get("parameters", {}).get("properties", {}))
        arguments = {names[0]: words[-1]} if names else {}
        return {
            "id": f"call_{uuid.uuid4().hex[:12]}",
            "type": "function",
            "function": {"name": function["name"], "arguments": json.dumps(arguments)},
        }
    return None


def build_app(pace_s: float = 0.0) -> Starlette:
    """Return the server as an app; `pace_s` is the time between two tokens."""
    server = ModelServer(pace_s)
    routes = [
        Route("/v1/models", server.models),
        Route("/v1/chat/completions", server.chat, methods=["POST"]),
    ]
    app = Starlette(routes=routes)
    app.state.log = server.log
    return app
