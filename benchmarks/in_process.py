"""What a request costs in process: a raw ASGI driver, the processor time of the loop's thread.

All subjects are measured in turn, round by round, on one loop of uvloop; what the driver itself
takes is measured beside them and left out everywhere.
"""

import asyncio
import gc
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import uvloop
from starlette.types import ASGIApp

from benchmarks.model_app import CHUNKS, KEY, PATH, asked
from benchmarks.subjects import Places, Subject

AT_ONCE = 64


def _bearer(key: str) -> tuple[bytes, bytes]:
    return b"authorization", b"Bearer " + key.encode()


_HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"accept", b"application/json"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"connection", b"keep-alive"),
    (b"user-agent", b"OpenAI/Python 2.0.0"),
    (b"x-stainless-lang", b"python"),
    _bearer(KEY),
    (b"content-type", b"application/json"),
]


def scope_of(body: bytes, key: str = KEY) -> dict[str, Any]:
    """Return what uvicorn's httptools server makes of a request, in all that matters here."""
    headers = _HEADERS if key is KEY else [*_HEADERS[:-2], _bearer(key), _HEADERS[-1]]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [*headers, (b"content-length", b"%d" % len(body))],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8_000),
        "state": {},
    }


async def call(app: ASGIApp, body: bytes, key: str = KEY) -> None:
    """Send one request, and see that it is answered with 200."""
    read = False
    status = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        if not read:
            read = True
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.get_running_loop().create_future()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    await app(scope_of(body, key), receive, send)
    assert status == 200, status


async def nothing(_scope: Any, receive: Any, send: Any) -> None:
    """Be an app that answers nothing: what is left is the driver."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def cpu_of(app: ASGIApp, body: bytes, count: int) -> tuple[float, float]:
    """Return the processor time in s of this thread and of the process for so many requests."""
    left = count

    async def worker() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await call(app, body)

    thread, process = time.thread_time(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(AT_ONCE)))
    return time.thread_time() - thread, time.process_time() - process


@dataclass(frozen=True)
class Cost:
    """What one subject takes, in µs, per round: its loop's thread, and the whole process."""

    loop_us: tuple[float, ...]
    process_us: tuple[float, ...]

    @property
    def us(self) -> float:
        """The median of the loop's."""
        return statistics.median(self.loop_us)

    @property
    def best_us(self) -> float:
        """The least, which a busy machine disturbs least."""
        return min(self.loop_us)


@dataclass(frozen=True)
class Costs:
    """The costs by subject, of a request or of a chunk; `noise` is of the bare app's rounds."""

    of: dict[str, Cost]
    bases: dict[str, str]

    def added(self, name: str, *, best: bool = False) -> float:
        """Return what a subject adds to its base, as a ratio of the base's own cost."""
        base, cost = self.of[self.bases[name]], self.of[name]
        if best:
            return cost.best_us / base.best_us - 1
        return cost.us / base.us - 1

    def noise(self, name: str) -> float:
        """Return the middle half of a subject's rounds, as a ratio of their median."""
        low, _, high = statistics.quantiles(self.of[name].loop_us, n=4)
        return (high - low) / self.of[name].us


async def _measure(
    subjects: Sequence[Subject], places: Places, rounds: int, requests: int, *, stream: bool
) -> Costs:
    body = asked(stream=stream)
    apps = {subject.name: subject.make(places) for subject in subjects}
    for app in apps.values():
        await cpu_of(app, body, AT_ONCE * 2)
    gc.collect()
    gc.freeze()  # what was made so far is no garbage of what is measured
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in apps}
    for _ in range(rounds):
        driver = await cpu_of(nothing, body, requests)
        for name, app in apps.items():
            cpu = await cpu_of(app, body, requests)
            found[name].append(
                (
                    (cpu[0] - driver[0]) / requests * 1e6,
                    (cpu[1] - driver[1]) / requests * 1e6,
                )
            )
    gc.unfreeze()
    return Costs(
        {
            name: Cost(tuple(loop for loop, _ in cpu), tuple(process for _, process in cpu))
            for name, cpu in found.items()
        },
        {subject.name: subject.base for subject in subjects},
    )


def json_costs(
    subjects: Sequence[Subject], places: Places, *, rounds: int = 15, requests: int = 1_280
) -> Costs:
    """Measure JSON requests of 1 KB, 64 at once."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measure(subjects, places, rounds, requests, stream=False))


def chunk_costs(
    subjects: Sequence[Subject],
    places: Places,
    json: Costs,
    *,
    rounds: int = 15,
    requests: int = 64,
) -> Costs:
    """Measure streams of 500 chunks; of each, what it takes above a JSON request, per chunk."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        whole = runner.run(_measure(subjects, places, rounds, requests, stream=True))

    def per_chunk(values: Sequence[float], rest_us: float) -> tuple[float, ...]:
        return tuple((value - rest_us) / CHUNKS for value in values)

    return Costs(
        {
            name: Cost(
                per_chunk(cost.loop_us, json.of[name].us),
                per_chunk(cost.process_us, statistics.median(json.of[name].process_us)),
            )
            for name, cost in whole.of.items()
        },
        whole.bases,
    )
