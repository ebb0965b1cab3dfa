"""A response of the background that is streamed in parts: each part is billed once."""

import asyncio
import itertools
from pathlib import Path
from typing import Any

import pytest

from inf_middleware.call.drain import drains
from inf_middleware.domain.errors import LedgerUnavailable
from tests.apps import event, read_all
from tests.call.test_deferred import forget, nothing, whole
from tests.driver import post, scope_of
from tests.kit import House

WORDS = 40
INPUT = 15
START = 2  # the number of the first event with text
NAMES = itertools.count()


def events(name: str) -> list[bytes]:
    """A whole stream, as vLLM numbers it; only its first events name the response."""
    begun = {"id": name, "status": "in_progress"}
    told = {"input_tokens": INPUT, "output_tokens": WORDS}
    values = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
        *({"type": "response.output_text.delta", "delta": " word"} for _ in range(WORDS)),
        {"type": "response.completed", "response": whole(name, usage=told)},
    ]
    return [event({**value, "sequence_number": at}) for at, value in enumerate(values)]


class Kept:
    """Keeps a response and streams any part of it, as far as it is told to."""

    def __init__(self, tmp_path: Path, **options: Any) -> None:
        self.name = f"resp_parts_{next(NAMES)}"
        self.until = START + 5
        self.house = House(self.answer, tmp_path, **options)

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        headers = [(b"content-type", b"text/event-stream")]
        after = int(scope["query_string"].partition(b"=")[2] or -1)
        until = self.until
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in events(self.name)[after + 1 : until]:
            await send({"type": "http.response.body", "body": piece, "more_body": True})

    async def ask(self) -> None:
        """Ask for it, and leave after five words."""
        body = {"model": "inf-chat-v1", "input": "Hi", "background": True, "stream": True}
        await post(self.house.app, body, key="sk-one", path="/v1/responses")

    async def fetch(self, after: int, until: int, send: Any = forget) -> None:
        """Fetch the words from one to another, counted from 0."""
        self.until = START + until
        scope = scope_of(f"/v1/responses/{self.name}", method="GET", key="sk-one")
        scope["query_string"] = f"starting_after={START + after - 1}".encode()
        await self.house.app(scope, nothing, send)

    @property
    def outputs(self) -> list[int]:
        return [record["output_tokens"] for record in self.house.records]


@pytest.mark.parametrize(
    ("parts", "outputs"),
    [
        ([(5, 20), (20, 40)], [5, 15, 20]),
        ([(3, 20), (10, 40)], [5, 15, 20]),
        ([(5, 20), (-START, 20), (-START, 30)], [5, 15, 10]),
        ([(5, 20), (20, WORDS + 1)], [5, 15, 20]),
        ([(39, 40), (5, 39)], [5, 1, 34]),
    ],
    ids=["one after another", "with what is between twice", "anew", "to its end", "back"],
)
def test_every_part_of_a_kept_stream_is_billed_once(
    parts: list[tuple[int, int]], outputs: list[int], tmp_path: Path
) -> None:
    kept = Kept(tmp_path)

    async def go() -> None:
        await kept.ask()
        for after, until in parts:
            await kept.fetch(after, until)
        await kept.house.close()

    asyncio.run(go())
    assert kept.outputs == outputs
    inputs = [record["input_tokens"] for record in kept.house.records]
    assert sum(inputs) == INPUT if parts[-1][1] > WORDS else inputs[0]


def test_a_part_that_was_begun_before_another_was_billed_is_billed_too(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    passed = 0

    async def slowly(message: Any) -> None:
        nonlocal passed
        passed += message["type"] == "http.response.body"
        if passed == 1 and message["type"] == "http.response.body":
            await kept.fetch(5, 6)

    async def go() -> None:
        await kept.ask()
        await kept.fetch(6, 40, slowly)
        await kept.house.close()

    asyncio.run(go())
    assert kept.outputs == [5, 1, 34]


def test_what_a_ledger_did_not_take_of_a_kept_stream_is_billed_with_the_rest(
    tmp_path: Path,
) -> None:
    kept = Kept(tmp_path, on_ledger_error="refuse", settle_timeout_s=0.01)
    ledger: Any = kept.house.ledger
    settle = ledger.settle

    async def fails(_: Any) -> None:
        raise LedgerUnavailable("it is away")

    async def go() -> None:
        ledger.settle = fails
        await kept.ask()
        await kept.fetch(5, 20)
        ledger.settle = settle
        await kept.fetch(-START, 30)
        ledger.settle = fails
        await kept.fetch(30, 35)
        ledger.settle = settle
        await kept.fetch(30, WORDS + 1)
        await kept.house.close()

    asyncio.run(go())
    assert kept.outputs == [30, 10]


def test_who_leaves_a_kept_stream_leaves_no_place_taken_among_those_that_are_finished(
    tmp_path: Path,
) -> None:
    kept = Kept(tmp_path, on_disconnect="drain")

    async def gone(message: Any) -> None:
        if message["type"] == "http.response.body":
            raise OSError("the client is gone")

    async def go() -> None:
        await kept.ask()
        before = len(drains)
        await kept.fetch(5, WORDS + 1, gone)
        assert len(drains) == before
        await kept.house.close()

    asyncio.run(go())
    assert kept.outputs == [5, 35]
