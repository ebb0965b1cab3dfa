"""Text that looks like protocol is text: in a prompt, in an answer, whole and streamed."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from inf_middleware.tokens.encodings import load_encoding
from tests.apps import (
    JsonApp,
    StreamApp,
    completion,
    delta,
    event,
    read_all,
    usage_chunk,
    usage_of,
)
from tests.driver import Answered, post
from tests.kit import CHAT, STREAM, House

TEXTS = [
    "data: [DONE]\n\n",
    "\n\ndata: [DONE]\n\ndata: ",
    'data: {"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}\n\n',
    '"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}',
    '"}}], "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, "x": [{"a": "',
    "event: message_stop\ndata: {}\n\n",
    "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    '{"model": "free", "max_tokens": 0, "stream": false}',
    "<|endoftext|><|im_end|>",
    "\r\r\n\x00\x1e\u2028\u2029\ufeff",
]
IDS = [str(number) for number in range(len(TEXTS))]


def ask(house: House, body: dict[str, Any]) -> Answered:
    async def go() -> Answered:
        try:
            return await post(house.app, body, key="sk-five")
        finally:
            await house.close()

    return asyncio.run(go())


def with_prompt(body: dict[str, Any], text: str) -> dict[str, Any]:
    return {**body, "messages": [{"role": "user", "content": text}]}


def tokens_of(text: str) -> int:
    return len(load_encoding("o200k_base").encode(text, disallowed_special=()))


def billed(house: House) -> tuple[str, int, int, str, str]:
    record = house.record
    return (
        record["model"],
        record["input_tokens"],
        record["output_tokens"],
        record["basis"],
        record["outcome"],
    )


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_a_whole_answer_is_billed_by_its_report_whatever_its_text_says(
    text: str, tmp_path: Path
) -> None:
    house = House(JsonApp(completion(text, usage=usage_of(9, 2))), tmp_path)
    assert ask(house, with_prompt(CHAT, text)).status == 200
    assert billed(house) == ("inf-chat-v1", 9, 2, "reported", "complete")


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_a_stream_is_billed_by_its_report_whatever_its_text_says(text: str, tmp_path: Path) -> None:
    frames = [event(delta(text)), event(delta(text)), event(delta("", finish="stop"))]
    model = StreamApp([*frames, event(usage_chunk(9, 2)), event("[DONE]")])
    house = House(model, tmp_path)
    answered = ask(house, with_prompt(STREAM, text))
    assert answered.body == b"".join([*frames, event("[DONE]")])
    assert billed(house) == ("inf-chat-v1", 9, 2, "reported", "complete")


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_an_answer_without_a_report_is_counted_by_its_text_whatever_that_says(
    text: str, tmp_path: Path
) -> None:
    frames = [event(delta(letter)) for letter in text]
    streamed = House(StreamApp([*frames, event("[DONE]")]), tmp_path)
    ask(streamed, with_prompt(STREAM, "Hello"))
    (tmp_path / "whole").mkdir()
    whole = House(JsonApp(completion(text)), tmp_path / "whole")
    ask(whole, with_prompt(CHAT, "Hello"))
    for house in (streamed, whole):
        assert house.record["output_tokens"] == tokens_of(text)
        assert house.record["basis"] == "counted"


class Echo:
    """Answers with what it was asked, whole, and reports its size."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = json.loads(await read_all(receive))
        text = asked["messages"][0]["content"]
        await JsonApp(completion(text, usage=usage_of(9, len(text))))(scope, _nothing, send)


async def _nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b""}


@pytest.mark.parametrize("text", TEXTS, ids=IDS)
def test_a_prompt_reaches_the_model_and_comes_back_as_it_is(text: str, tmp_path: Path) -> None:
    house = House(Echo(), tmp_path)
    answered = ask(house, with_prompt(CHAT, text))
    assert answered.json["choices"][0]["message"]["content"] == text
    assert house.record["output_tokens"] == len(text)
