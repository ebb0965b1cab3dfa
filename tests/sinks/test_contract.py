"""What every sink promises, over real far ends: the same bytes, in order, at least once."""

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import BillingEvent
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.sinks.relay import Relay
from tests.events import event_of
from tests.sinks.far_ends import FarEnd
from tests.sinks.kit import DRAIN_S, Slept, Taking, dead_letters, relaying, until

# Two accounts in turns, with what JSON has to escape and what takes several bytes.
EVENTS = [
    event_of(
        number, account=("acme", "银行")[number % 2], model='a\n"b"\u2028', metadata={"n": number}
    )
    for number in range(120)
]
BODIES = [event.encode() for event in EVENTS]


def ids(bodies: list[bytes]) -> list[str]:
    return [json.loads(body)["id"] for body in bodies]


async def settle(ledger: SqliteLedger, events: list[BillingEvent]) -> None:
    await asyncio.gather(*(ledger.settle(event) for event in events))


def test_each_event_arrives_once_with_its_very_bytes_in_order(
    far_end: FarEnd, tmp_path: Path
) -> None:
    async def go() -> None:
        async with relaying(tmp_path / "l.db", {"far": far_end.sink()}) as (ledger, relay):
            await settle(ledger, EVENTS)
            await relay.drain(DRAIN_S)

    asyncio.run(go())
    assert far_end.arrived() == BODIES


def test_what_comes_while_it_is_down_arrives_in_order_and_nobody_waits_for_it(
    far_end: FarEnd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, other = tmp_path / "l.db", Taking()

    async def go() -> None:
        sinks = {"far": far_end.sink(), "other": other}
        async with relaying(path, sinks) as (ledger, relay):
            await settle(ledger, EVENTS[:20])
            await relay.drain(DRAIN_S)
            await asyncio.to_thread(far_end.go_down)
            await settle(ledger, EVENTS[20:])
            await until(lambda: len(other.taken) == len(EVENTS))
            await until(lambda: "sink far did not take its events" in caplog.text)
            await asyncio.to_thread(far_end.come_up)
            await relay.drain(DRAIN_S)

    asyncio.run(go())
    assert far_end.arrived() == BODIES
    assert dead_letters(path) == []


def test_what_was_sent_before_the_cursor_moved_comes_again_with_the_same_bytes(
    far_end: FarEnd, tmp_path: Path
) -> None:
    class Failing(SqliteLedger):
        failures = 2

        async def advance(self, sink: str, place: int, rejected: Any) -> None:
            if place and self.failures:
                self.failures -= 1
                raise OSError("killed here")
            await super().advance(sink, place, rejected)

    async def go() -> None:
        ledger = Failing(tmp_path / "l.db")
        await settle(ledger, EVENTS[:5])
        relay = Relay(ledger, {"far": far_end.sink()}, sleep=Slept())
        relay.start()
        await relay.drain(DRAIN_S)
        await relay.aclose()
        await ledger.aclose()

    asyncio.run(go())
    assert far_end.arrived() == BODIES[:5] * 3


def test_a_sink_goes_on_on_another_event_loop_and_after_it_was_closed(far_end: FarEnd) -> None:
    sink = far_end.sink()

    async def send(number: int) -> None:
        await sink([EVENTS[number]])
        for _ in range(2):
            close = getattr(sink, "aclose", None)
            if close is not None:
                await close()
        await sink([EVENTS[number + 1]])
        if close is not None:
            await close()

    for number in (0, 2):
        asyncio.run(send(number))
    assert far_end.arrived() == BODIES[:4]


def test_making_a_sink_opens_nothing(far_end: FarEnd) -> None:
    far_end.go_down()
    try:
        before = len(os.listdir("/proc/self/fd"))
        sink = far_end.sink()
        assert len(os.listdir("/proc/self/fd")) == before
        assert callable(sink)
    finally:
        far_end.come_up()


def test_however_many_wait_one_batch_is_in_memory(
    far_end: FarEnd, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL)
    most = 0

    class Watching(SqliteLedger):
        async def pending(self, sink: str, count_max: int) -> Any:
            nonlocal most
            rows = await super().pending(sink, count_max)
            most = max(most, len(rows))
            return rows

    async def go() -> None:
        ledger, slept = Watching(tmp_path / "l.db"), Slept()
        await settle(ledger, EVENTS)
        far_end.go_down()
        relay = Relay(ledger, {"far": far_end.sink()}, sleep=slept)
        relay.start()
        await until(lambda: len(slept.seconds) > 5)
        await relay.aclose()
        await ledger.aclose()
        await asyncio.to_thread(far_end.come_up)

    asyncio.run(go())
    assert most == 100


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_a_sink_does_not_need_the_event_loop_that_died_with_its_connections(
    far_end: FarEnd,
) -> None:
    sink = far_end.sink()
    asyncio.run(sink([EVENTS[0]]))

    async def again() -> None:
        await sink([EVENTS[1]])
        close = getattr(sink, "aclose", None)
        if close is not None:
            await close()

    asyncio.run(again())
    gc.collect()  # what was left open is complained of here
    assert far_end.arrived() == BODIES[:2]


# The relay alone: fails twenty times, then delivers all; says how much its memory has grown.
GROWING = """
import asyncio, sys
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.sinks.relay import Relay

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

async def main():
    failures, taken, before = 20, 0, 0

    async def sink(events):
        nonlocal failures, taken, before
        before = before or resident()
        if failures:
            failures -= 1
            raise OSError("down")
        taken += len(events)

    ledger = SqliteLedger(sys.argv[1])
    relay = Relay(ledger, {"mine": sink}, sleep=lambda _: asyncio.sleep(0))
    relay.start()
    await relay.drain(60)
    print(taken, resident() - before)
    await relay.aclose()
    await ledger.aclose()

asyncio.run(main())
"""


def test_memory_is_flat_however_much_waits(tmp_path: Path) -> None:
    path, count, length = tmp_path / "l.db", 6_000, 10_000

    async def fill() -> None:
        ledger = SqliteLedger(path)
        await settle(ledger, [event_of(n, metadata={"x": "y" * length}) for n in range(count)])
        await ledger.aclose()

    asyncio.run(fill())
    command = [sys.executable, "-c", GROWING, str(path)]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert told.returncode == 0, told.stderr
    taken, grown = map(int, told.stdout.split())
    assert taken == count
    # 60 MB went through; a few batches of 1 MB and SQLite's cache are held.
    assert grown < count * length / 3
