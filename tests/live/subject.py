"""A small model server behind our three, as uvicorn starts it in processes of its own.

What it is comes by the environment, as JSON: `SUBJECT_LIMITER` (options of `TierLimiter`; accounts
as {key: level}), `SUBJECT_LEDGER` (options of `CostLedger`), `SUBJECT_FOLDER` (where each process
keeps its log of admissions).
"""

import asyncio
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

from inf_middleware import Account, CostLedger, TierLimiter, TokenMeter
from tests.apps import completion, delta, event, live, read_all, usage_chunk, usage_of
from tests.processes import die_with_parent

# One message "Hello" of a user, as o200k_base and OpenAI's overhead count it; that a request
# reserves just this and its cap is what `test_flood.py` tests.
MESSAGES = [{"role": "user", "content": "Hello"}]
INPUT_TOKENS = 8


class Admissions:
    """An append-only log of one process: what was admitted, from when to when.

    All moments are of the host's monotonic clock. A call is really admitted after `arrived`, before
    `entered`, and its slot is really held from before `entered` until after `ended`.
    """

    def __init__(self, folder: Path) -> None:
        # Unbuffered: what is written stays, whatever is done to the process.
        self._file = (folder / f"{os.getpid()}.log").open("ab", buffering=0)
        self._numbers = itertools.count()

    def begin(self, key: str, tokens: int, arrived: float, entered: float) -> int:
        number = next(self._numbers)
        self._write(["begin", number, key, tokens, arrived, entered])
        return number

    def end(self, number: int) -> None:
        self._write(["end", number, time.monotonic()])

    def close(self) -> None:
        self._file.close()

    def _write(self, line: list[Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")


class Arrivals:
    """Outside of ours: notes in the scope when a request arrived."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["test.arrived"] = time.monotonic()
        await self.app(scope, receive, send)


class Model:
    """Works for `hold_s` on a request, and uses just the tokens that it reserved."""

    def __init__(self, admissions: Admissions) -> None:
        self._admissions = admissions

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        entered = time.monotonic()
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        if scope["method"] != "POST":
            await _send_json(send, {"pid": os.getpid()})
            return
        asked = json.loads(await read_all(receive))
        headers = dict(scope["headers"])
        key = headers[b"authorization"].decode().removeprefix("Bearer ")
        tokens = INPUT_TOKENS + asked["max_tokens"]
        number = self._admissions.begin(key, tokens, scope["test.arrived"], entered)
        work = _stream if asked.get("stream") else _whole
        hold_s = float(asked.get("metadata", {}).get("hold_s", 0))
        await work(asked, hold_s, send, lambda: self._admissions.end(number))


async def _whole(asked: dict[str, Any], hold_s: float, send: Any, end: Any) -> None:
    await asyncio.sleep(hold_s)
    answer = completion("Hi.", usage=usage_of(INPUT_TOKENS, asked["max_tokens"]))
    end()
    await _send_json(send, answer)


async def _stream(asked: dict[str, Any], hold_s: float, send: Any, end: Any) -> None:
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    first = event(delta("Hi."))
    await send({"type": "http.response.body", "body": first, "more_body": True})
    await asyncio.sleep(hold_s)
    last = event(delta("", finish="stop"))
    if (asked.get("stream_options") or {}).get("include_usage"):
        last += event(usage_chunk(INPUT_TOKENS, asked["max_tokens"]))
    end()
    await send({"type": "http.response.body", "body": last + event("[DONE]"), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _send_json(send: Any, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def build() -> Any:
    """The factory that uvicorn calls in each process."""
    die_with_parent()
    limiter = json.loads(os.environ["SUBJECT_LIMITER"])
    limiter["accounts"] = {
        key: Account(key, tier=level) for key, level in limiter["accounts"].items()
    }
    app: Any = Model(Admissions(Path(os.environ["SUBJECT_FOLDER"])))
    app = CostLedger(app, **json.loads(os.environ["SUBJECT_LEDGER"]))
    app = TierLimiter(app, **limiter)
    return Arrivals(TokenMeter(app))
