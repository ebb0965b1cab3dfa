"""Answers that no model gives: passed on as they came, read within bounds, one bill each."""

import asyncio
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from inf_middleware.wire.sse import EVENT_BYTES_MAX
from tests.apps import JsonApp, StreamApp, event, usage_chunk
from tests.driver import post
from tests.kit import CHAT, STREAM, House

DEEP = {
    "objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "lists": b'{"choices":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "usage": b'{"usage":' * 200_000 + b"1" + b"}" * 200_000,
    "unfinished": b'{"choices":[{"message":{"content":' * 10_000,
}


def ask(house: House, body: dict[str, Any], **more: Any) -> bytes:
    async def go() -> bytes:
        try:
            return (await post(house.app, body, key="sk-five", **more)).body
        finally:
            await house.close()

    return asyncio.run(go())


@pytest.mark.parametrize("kind", DEEP)
def test_a_deep_answer_is_passed_on_and_is_one_bill(kind: str, tmp_path: Path) -> None:
    house = House(JsonApp(DEEP[kind]), tmp_path)
    assert ask(house, CHAT) == DEEP[kind]
    assert house.record["outcome"] == "complete"
    assert house.record["basis"] != "reported"


@pytest.mark.parametrize("kind", DEEP)
def test_a_deep_event_is_passed_on_and_the_report_after_it_is_taken(
    kind: str, tmp_path: Path
) -> None:
    deep = event(DEEP[kind].decode())
    house = House(StreamApp([deep, event(usage_chunk(9, 2)), event("[DONE]")]), tmp_path)
    assert ask(house, STREAM) == deep + event("[DONE]")
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (9, 2)


def test_an_event_without_end_is_passed_on_within_bounds_and_is_one_bill(tmp_path: Path) -> None:
    piece = b"x" * (1024 * 1024)
    pieces = [b"data: ", *[piece] * (3 * EVENT_BYTES_MAX // len(piece))]
    house = House(StreamApp(pieces), tmp_path)
    size = 0
    heads: list[bytes] = []

    class Counted:
        """A client that keeps nothing of what it reads."""

        async def __call__(self, message: dict[str, Any]) -> None:
            nonlocal size
            body = message.pop("body", b"")
            size += len(body)
            heads.append(body[:1])

    tracemalloc.start()
    try:
        ask(house, STREAM, on_message=Counted())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == sum(map(len, pieces))
    assert set(heads[2:]) <= {b"x", b""}
    # What waits for its end is held once, and once more while it is let go.
    assert peak < 3 * EVENT_BYTES_MAX
    assert house.record["basis"] == "estimated"
    assert house.record["output_tokens"] > 0
