"""What tests of sinks share: sinks that do as they are told, and a relay on an injected clock."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from inf_middleware import BillingEvent
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.sinks.relay import Relay
from tests.events import event_of
from tests.kit import reading

DRAIN_S = 10.0

EVENTS = [event_of(number) for number in range(250)]
IDS = [event.id for event in EVENTS]


class Taking:
    """A sink that takes what it is offered, but for the failures it is told to have."""

    def __init__(self, *failures: BaseException) -> None:
        self.failures = list(failures)
        self.offered: list[list[str]] = []
        self.taken: list[BillingEvent] = []
        self.took = asyncio.Event()

    async def __call__(self, events: Sequence[BillingEvent]) -> None:
        self.offered.append([event.id for event in events])
        if self.failures:
            raise self.failures.pop(0)
        self.taken += events
        self.took.set()


class Windowed(Taking):
    """The same, whose far end knows an id again for an hour."""

    dedupe_window_s = 3600.0


class Slept:
    """A sleep that only notes how long it was to be, and moves the clock by as much."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.now = datetime(2026, 11, 24, 1, tzinfo=UTC)

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.now += timedelta(seconds=seconds)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def relaying(
    path: Path, sinks: dict[str, Any], *, slept: Slept | None = None, **options: Any
) -> AsyncIterator[tuple[SqliteLedger, Relay]]:
    """A ledger and its relay, closed at the end without waiting for what is left."""
    slept = slept or Slept()
    ledger = SqliteLedger(path)
    relay = Relay(ledger, sinks, sleep=slept, jitter=lambda: 1.0, now=lambda: slept.now, **options)
    try:
        relay.start()
        yield ledger, relay
    finally:
        await relay.aclose()
        await ledger.aclose()


async def until(holds: Callable[[], bool], timeout_s: float = DRAIN_S) -> None:
    """Wait for what other tasks or processes bring about."""
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - what is waited for may be another process
            await asyncio.sleep(0.005)


def dead_letters(path: Path) -> list[Any]:
    with reading(path) as db:
        return db.execute("SELECT sink, id, reason FROM dead_letter ORDER BY sink, id").fetchall()
