"""What is soaked, as uvicorn starts it in each worker: a model server behind our three, twice over.

/prepaid/… is a stack of its own, that holds money before it works; all else is postpaid. Both are
on one Redis and one ledger, and share what the stacks of a process share. `SOAK` names the places,
as JSON. GET /soak/state tells what the process has open.
"""

import asyncio
import gc
import json
import os
from collections import Counter
from typing import Any

from inf_middleware import CostLedger, TierLimiter, TokenMeter
from tests.apps import completion, delta, event, live, read_all, usage_chunk, usage_of
from tests.processes import die_with_parent
from tests.soak.opened import open_files, rss_bytes, tasks_of, threads

PREPAID = "/prepaid"
STATE = "/soak/state"
DEPLOYMENT = "soak"

# One message "Hello" of a user, as o200k_base and OpenAI's overhead count it.
MESSAGES = [{"role": "user", "content": "Hello"}]
INPUT_TOKENS = 8

# Of one process; above it a request is refused, so that Redis is never asked by more at a time.
IN_FLIGHT_MAX = 32

# Half of the default: what a killed worker held is over soon, and the run need not wait for long.
LEASE_S = 15.0


class Model:
    """Says `words` words, each one token, and uses just as long as it is told.

    What it is to do comes in the request's metadata, whose values are texts: `words`, `pause_s`
    between two of them, and `how`: "quiet" tells no usage, "fails" answers 500, "raises" raises in
    the middle.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await live(receive, send)
            return
        asked = json.loads(await read_all(receive))
        told = asked["metadata"]
        words, pause_s, how = int(told["words"]), float(told["pause_s"]), told["how"]
        work = _stream if asked.get("stream") else _whole
        await work(asked, words, pause_s, how, send)


async def _whole(asked: Any, words: int, pause_s: float, how: str, send: Any) -> None:
    await asyncio.sleep(pause_s * words)
    if how == "raises":
        raise RuntimeError("the model fell over, as it was told to")
    if how == "fails":
        await _send_json(send, 500, {"error": {"message": "as told", "type": "server_error"}})
        return
    usage = None if how == "quiet" else usage_of(INPUT_TOKENS, words)
    await _send_json(send, 200, completion(" one" * words, usage=usage))


async def _stream(asked: Any, words: int, pause_s: float, how: str, send: Any) -> None:
    if how == "fails":
        await _send_json(send, 500, {"error": {"message": "as told", "type": "server_error"}})
        return
    headers = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for number in range(words):
        await asyncio.sleep(pause_s)
        if how == "raises" and number == words // 2:
            raise RuntimeError("the model fell over in the middle, as it was told to")
        await _piece(send, event(delta(" one")))
    last = event(delta("", finish="stop"))
    if how != "quiet" and (asked.get("stream_options") or {}).get("include_usage"):
        last += event(usage_chunk(INPUT_TOKENS, words))
    await _piece(send, last + event("[DONE]"))
    await send({"type": "http.response.body", "body": b""})


async def _piece(send: Any, body: bytes) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _send_json(send: Any, status: int, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Soaked:
    """Both stacks, and the route that tells what this process has open."""

    def __init__(self, places: dict[str, Any]) -> None:
        self._prepaid = _stack(places, "prepaid")
        self._postpaid = _stack(places, "postpaid")
        self._served = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            # The other stack is told nothing of it, as by servers and mounts without a lifespan.
            await self._postpaid(scope, receive, send)
        elif scope["path"] == STATE:
            await _send_json(send, 200, self._state(collects=scope["query_string"] == b"collect"))
        else:
            self._served += 1
            prepaid = scope["path"].startswith(PREPAID)
            await (self._prepaid if prepaid else self._postpaid)(scope, receive, send)

    def _state(self, *, collects: bool) -> dict[str, Any]:
        state = {
            "pid": os.getpid(),
            "served": self._served,
            "rss": rss_bytes(os.getpid()),
            "tasks": dict(tasks_of(asyncio.get_running_loop())),
            "threads": dict(threads()),
            "files": dict(open_files()),
        }
        if collects:  # of a worker at rest: it takes a tenth of a second
            gc.collect()
            kinds = Counter(type(one).__qualname__ for one in gc.get_objects())
            state["objects"] = dict(kinds)
        return state


def _stack(places: dict[str, Any], mode: str) -> Any:
    app: Any = CostLedger(
        Model(), ledger=places["ledger"], prices=places["prices"], sinks=places["sinks"], mode=mode
    )
    app = TierLimiter(
        app,
        tiers=places["tiers"],
        storage=places["storage"],
        lease_s=LEASE_S,
        max_in_flight=IN_FLIGHT_MAX,
    )
    return TokenMeter(app, accounts=places["ledger"], deployment=DEPLOYMENT)


def build() -> Any:
    """The factory that uvicorn calls in each worker."""
    die_with_parent()
    return Soaked(json.loads(os.environ["SOAK"]))
