"""The steps that nobody can leave out, one after the other in one function: for orientation.

One API, one account, limits that only count, streams of one server, no options, no errors, one
table for bills: what this adds to the bare app is what metering, limiting and billing add before
they are a library.
"""

import asyncio
import hashlib
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeAlias

import apsw
import msgspec
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.model_app import KEY, PATH
from inf_middleware.domain.ids import uuid7

_WIDE = 10**9
_KEYS = {hashlib.sha256(KEY.encode()).digest(): "acme"}
_NANO_PER_TOKEN = 10_000
_BODY_BYTES_MAX = 8 * 1024 * 1024
_SLOT_NS = 500_000_000

# How an event ends that has text and nothing else.
_TEXT_ENDS = b'"logprobs": null, "finish_reason": null}]}\n\n'


class _Asked(msgspec.Struct):
    model: str
    messages: msgspec.Raw
    stream: bool = False
    n: int = 1
    max_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Answer(msgspec.Struct):
    id: str
    model: str
    usage: _Usage


_asked = msgspec.json.Decoder(_Asked).decode
_answer = msgspec.json.Decoder(_Answer).decode
_encode = msgspec.json.Encoder().encode


class _Window:
    """One rolling minute that never refuses: a total, and what each slot took."""

    def __init__(self) -> None:
        self.total = 0
        self.slots: dict[int, int] = {}

    def take(self, slot: int, amount: int) -> int:
        if self.total + amount > _WIDE:
            raise OverflowError
        self.total += amount
        self.slots[slot] = self.slots.get(slot, 0) + amount
        if len(self.slots) > 120:
            self.total -= self.slots.pop(next(iter(self.slots)))
        return _WIDE - self.total


# The bills of one turn of a loop, and who waits for them.
_Batch: TypeAlias = tuple[asyncio.AbstractEventLoop, list[bytes], list["asyncio.Future[None]"]]


class StraightLine:
    """Counts; `limits`: and limits; `bills`: and makes the event, and waits a turn for nothing.

    `keeps`: the file in which it keeps the events, durably, and what it waits for instead.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: bool = False,
        bills: bool = False,
        keeps: Path | None = None,
    ) -> None:
        self._app = app
        self._limits = limits
        self._bills = bills
        self._requests = _Window()
        self._tokens = _Window()
        self._running: set[str] = set()
        self._waiting: list[asyncio.Future[None]] = []
        self._events: list[bytes] = []
        self._queue: SimpleQueue[_Batch] | None = None
        if keeps is not None:
            self._queue = SimpleQueue()
            threading.Thread(target=_keep, args=(keeps, self._queue), daemon=True).start()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that is as expected."""
        if scope["type"] != "http" or scope["path"] != PATH:
            await self._app(scope, receive, send)
            return
        started_ns = time.time_ns()
        call_id = uuid7(started_ns)
        named = dict(scope["headers"])
        name = call_id.encode()
        more = [(b"x-request-id", name), (b"request-id", name)]
        message = await receive()
        body = message["body"]
        assert not message["more_body"]
        assert len(body) <= _BODY_BYTES_MAX
        asked = _asked(body)
        slot, reserved = started_ns // _SLOT_NS, 0
        account = ""
        if self._limits:
            account = _KEYS[hashlib.sha256(named[b"authorization"][7:]).digest()]
            reserved = len(body) // 2 + (asked.max_tokens or 1024) * asked.n
            requests, tokens = self._requests.take(slot, 1), self._tokens.take(slot, reserved)
            self._running.add(call_id)
            more += [
                (b"x-ratelimit-limit-requests", b"1000000000"),
                (b"x-ratelimit-remaining-requests", b"%d" % requests),
                (b"x-ratelimit-reset-requests", b"60s"),
                (b"x-ratelimit-limit-tokens", b"1000000000"),
                (b"x-ratelimit-remaining-tokens", b"%d" % tokens),
                (b"x-ratelimit-reset-tokens", b"60s"),
                (b"x-ratelimit-limit-concurrency", b"1000"),
                (b"x-ratelimit-remaining-concurrency", b"%d" % (1_000 - len(self._running))),
            ]
        is_replayed = False
        start: Message = {}
        kept: list[bytes] = []  # to be counted, should no usage come

        async def replaying() -> Message:
            nonlocal is_replayed
            if is_replayed:
                return await receive()
            is_replayed = True
            return message

        async def settle(told: _Answer) -> None:
            used = told.usage.prompt_tokens + told.usage.completion_tokens
            if self._limits:
                self._tokens.total += used - reserved
                self._tokens.slots[slot] += used - reserved
                self._running.discard(call_id)
            if self._bills:
                event = _encode(_event(call_id, account, asked, told, started_ns))
                await self._turn(event)

        async def sending(out: Message) -> None:
            nonlocal start
            if out["type"] == "http.response.start":
                start = {**out, "headers": [*out["headers"], *more]}
                if asked.stream:
                    await send(start)
                return
            piece = out["body"]
            if not asked.stream:
                await settle(_answer(piece))
                await send(start)
            elif piece.endswith(_TEXT_ENDS):
                kept.append(piece)
            elif b'"usage"' in piece:
                await settle(_answer(piece[len(b"data: ") :]))
            await send(out)

        await self._app({**scope, "straight": call_id}, replaying, sending)

    def _turn(self, event: bytes) -> asyncio.Future[None]:
        """Wait for what all who ask in one turn of the loop wait for."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._hand_over, loop)
        self._waiting.append(future)
        self._events.append(event)
        return future

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        waiting, self._waiting = self._waiting, []
        events, self._events = self._events, []
        if self._queue is None:
            _tell(waiting)
        else:
            self._queue.put((loop, events, waiting))


def _tell(waiting: list["asyncio.Future[None]"]) -> None:
    for one in waiting:
        one.set_result(None)


def _keep(path: Path, queue: "SimpleQueue[_Batch]") -> None:
    """Write what comes, each turn in a transaction that is durable before those who wait hear."""
    db = apsw.Connection(str(path))
    db.execute("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL")
    db.execute("CREATE TABLE IF NOT EXISTS bill (seq INTEGER PRIMARY KEY, body TEXT NOT NULL)")
    while True:
        loop, events, waiting = queue.get()
        with db:
            db.executemany("INSERT INTO bill (body) VALUES (?)", [(one,) for one in events])
        loop.call_soon_threadsafe(_tell, waiting)


def _event(
    call_id: str, account: str, asked: _Asked, told: _Answer, started_ns: int
) -> dict[str, Any]:
    amount_nano = (told.usage.prompt_tokens + told.usage.completion_tokens) * _NANO_PER_TOKEN
    return {
        "request_id": call_id,
        "account": account,
        "endpoint": PATH,
        "model": asked.model,
        "response_model": told.model,
        "response_id": told.id,
        "input_tokens": told.usage.prompt_tokens,
        "output_tokens": told.usage.completion_tokens,
        "amount_nano": str(amount_nano),
        "currency": "CNY",
        "outcome": "complete",
        "started_ns": started_ns,
        "settled_ns": time.time_ns(),
    }
