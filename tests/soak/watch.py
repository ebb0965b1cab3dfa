"""Looks at the workers while they work, and judges whether their memory is flat."""

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from typing import Any, NamedTuple

from tests.soak.app import STATE
from tests.soak.house import House
from tests.soak.opened import descriptors, rss_bytes

SAMPLE_S = 1.0

# For one worker to say what it has open, on a machine that is busy with other tests.
_ANSWER_S = 20.0

# By how much a worker's memory may grow over the last two thirds of a run. A call's own record has
# some kilobytes, so that a leak of one a call is ten times what is granted a call. The rest is for
# what comes once: a worker that becomes the one that delivers loads an HTTP client (4.5 MiB), and
# allocators keep pages that a busy moment took.
GROWTH_BYTES_MAX = 8 * 1024 * 1024
GROWTH_BYTES_PER_CALL = 256

# A worker that was there when the faults began has been seen by then.
_FIRST_S = 5.0

# Of a worker that lived for a shorter part of that time a slope says nothing.
_SHARE_MIN = 0.5


class Sample(NamedTuple):
    """One look at a worker."""

    at_s: float
    rss: int
    descriptors: int


class Growth(NamedTuple):
    """What a worker's memory did from a third of the run to its end, by least squares."""

    pid: int
    minutes: float
    first_bytes: int
    per_hour_bytes: float
    grown_bytes: float


class Watch:
    """Samples each worker once a second, from outside: it costs the worker nothing."""

    def __init__(self, house: House) -> None:
        self.samples: dict[int, list[Sample]] = defaultdict(list)
        self.ended_s = 0.0
        self._begun_s = time.monotonic()
        self._house = house

    @property
    def now_s(self) -> float:
        """The time since the beginning."""
        return time.monotonic() - self._begun_s

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            now_s = self.now_s
            for pid in self._house.server.workers:
                if rss := rss_bytes(pid):
                    self.samples[pid].append(Sample(now_s, rss, descriptors(pid)))
            await asyncio.sleep(SAMPLE_S)

    def growths(self) -> list[Growth]:
        """Judge the workers of the start that lived for most of the last two thirds of the run."""
        ended_s = self.ended_s
        from_s = ended_s / 3
        found = []
        for pid, samples in self.samples.items():
            if samples[0].at_s > _FIRST_S:  # started again: it has still to load all it needs
                continue
            late = [one for one in samples if from_s <= one.at_s <= ended_s]
            if len(late) < 3 or late[-1].at_s - late[0].at_s < _SHARE_MIN * (ended_s - from_s):
                continue
            span_s = late[-1].at_s - late[0].at_s
            per_s = slope([(one.at_s, float(one.rss)) for one in late])
            found.append(Growth(pid, span_s / 60, late[0].rss, per_s * 3600, per_s * span_s))
        return found


def slope(points: list[tuple[float, float]]) -> float:
    """The slope of a line through points, by least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def growth_bytes_max(calls: int) -> int:
    """By how much the memory of a worker may grow that has served so many calls meanwhile."""
    return GROWTH_BYTES_MAX + GROWTH_BYTES_PER_CALL * calls


async def states(
    house: House, *, timeout_s: float, collects: bool = False
) -> dict[int, dict[str, Any]]:
    """Ask the workers what they have open, each connection one of them; those that answer."""
    found: dict[int, dict[str, Any]] = {}
    deadline = time.monotonic() + timeout_s
    wanted = house.server.workers
    while set(found) != wanted and time.monotonic() < deadline:
        with contextlib.suppress(OSError, EOFError, ValueError, TimeoutError):
            state = await _state(house.server.port, collects, timeout_s)
            found[state["pid"]] = state
        wanted = house.server.workers
        found = {pid: state for pid, state in found.items() if pid in wanted}
    return found


async def _state(port: int, collects: bool, timeout_s: float) -> dict[str, Any]:
    async with asyncio.timeout(min(timeout_s, _ANSWER_S)):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            question = b"?collect" if collects else b""
            writer.write(
                b"GET " + STATE.encode() + question + b" HTTP/1.1\r\nhost: soak\r\n"
                b"connection: close\r\n\r\n"
            )
            answer = await reader.read()
        finally:
            writer.close()
    state: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return state
