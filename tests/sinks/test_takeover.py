"""One relay per ledger: the next takes over when it dies, and two never go on side by side."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.sinks.delivery import POLL_S
from inf_middleware.sinks.relay import Relay
from tests.kit import lines_of
from tests.ledgers.postgres_server import serving_postgres
from tests.processes import outlived_by_a_child
from tests.sinks.kit import DRAIN_S, EVENTS, IDS, Slept, Taking, relaying, until

# Settles a thousand events and delivers them to a file, one by one; says when it has begun.
CHILD = """
import asyncio, sys
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.sinks import delivery
from inf_middleware.sinks.jsonl import JsonlSink
from inf_middleware.sinks.relay import Relay
from tests.events import event_of

async def main():
    ledger, sink = ledger_of(sys.argv[1]), JsonlSink(sys.argv[2])

    async def slow(events):
        await sink(events)
        print(len(events), flush=True)
        await asyncio.sleep(0.02)

    relay = Relay(ledger, {"mine": slow})
    relay.start()
    await asyncio.gather(*(ledger.settle(event_of(n)) for n in range(1000)))
    await asyncio.sleep(60)

asyncio.run(main())
"""


def start(ledger: Path | str, file: Path) -> "subprocess.Popen[str]":
    uri = f"sqlite:///{ledger}" if isinstance(ledger, Path) else ledger
    command = [sys.executable, "-c", CHILD, uri, str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/l.db"
    else:
        with serving_postgres() as postgres:
            yield postgres.uri()


def test_relays_killed_between_send_and_cursor_lose_nothing_and_keep_the_order(
    uri: str, tmp_path: Path
) -> None:
    file = tmp_path / "e.jsonl"
    for batches in (2, 1, 3):
        child = start(uri, file)
        assert child.stdout is not None
        for _ in range(batches):
            assert child.stdout.readline()
        # Now its sink has the batch, and its cursor is behind.
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    last = Taking()

    async def go() -> list[str]:
        ledger = ledger_of(uri)
        relay = Relay(ledger, {"mine": last})
        relay.start()
        # The server may take a moment to see that the one before is gone.
        await until(lambda: bool(last.taken), timeout_s=60)
        await relay.drain(60)
        await relay.aclose()
        stored = [event.id for _, event in await ledger.pending("none", 10_000)]
        await ledger.aclose()
        return stored

    stored = asyncio.run(go())
    delivered = [line["id"] for line in lines_of(file)] + [event.id for event in last.taken]
    first = list(dict.fromkeys(delivered))
    assert first == stored
    assert len(first) >= 1_000
    assert 0 < len(delivered) - len(first) <= 3 * 100


def test_a_waiting_process_takes_over_from_a_killed_one_at_its_next_poll(tmp_path: Path) -> None:
    path, file = tmp_path / "l.db", tmp_path / "e.jsonl"
    child = start(path, file)
    assert child.stdout is not None
    assert child.stdout.readline()
    sink, slept = Taking(), Slept()

    async def go() -> None:
        async with relaying(path, {"mine": sink}, slept=slept) as (ledger, _):
            await until(lambda: POLL_S in slept.seconds)
            assert sink.offered == []
            child.send_signal(signal.SIGKILL)
            child.wait()
            polls = slept.seconds.count(POLL_S)
            await sink.took.wait()
            # Those begun while it died, and not one more.
            assert slept.seconds.count(POLL_S) <= polls + 1
            assert await ledger.elect("mine")

    asyncio.run(go())
    child.stdout.close()


class Deposed(SqliteLedger):
    """A ledger whose relay's lock can be lost, as one bound to a connection is."""

    lost = False

    async def elect(self, sink: str) -> bool:
        return not self.lost and await super().elect(sink)


def test_who_is_the_relay_no_more_stops_and_comes_back_when_it_is_its_turn(
    tmp_path: Path,
) -> None:
    sink = Taking()

    async def go() -> None:
        ledger = Deposed(tmp_path / "a.db")
        relay = Relay(ledger, {"mine": sink, "other": Taking()})
        relay.start()
        await ledger.settle(EVENTS[0])
        await until(lambda: len(sink.taken) == 1)
        ledger.lost = True
        await ledger.settle(EVENTS[1])
        await relay.drain(0.3)
        assert len(sink.taken) == 1
        ledger.lost = False
        await until(lambda: len(sink.taken) == 2)
        await relay.aclose()
        await ledger.aclose()

    asyncio.run(go())
    assert [event.id for event in sink.taken] == IDS[:2]


def test_who_has_the_lock_of_a_file_that_was_deleted_is_the_relay_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    def delete_locks() -> None:
        for lock in tmp_path.glob("a.db.relay*"):
            lock.unlink()

    async def go() -> None:
        first, second = SqliteLedger(path), SqliteLedger(path)
        assert [await first.elect("mine"), await second.elect("mine")] == [True, False]
        delete_locks()  # as somebody does who takes it for one that was left
        assert [await second.elect("mine"), await first.elect("mine")] == [True, False]
        await second.aclose()
        assert await first.elect("mine")
        await first.aclose()

    asyncio.run(go())


def test_each_process_delivers_to_the_sinks_that_it_alone_has(uri: str) -> None:
    shared, mine, others = Taking(), Taking(), Taking()

    async def go() -> None:
        ledgers = ledger_of(uri), ledger_of(uri)
        relays = (
            Relay(ledgers[0], {"shared": shared, "mine": mine}),
            Relay(ledgers[1], {"shared": shared, "others": others}),
        )
        for ledger, relay, event in zip(ledgers, relays, EVENTS, strict=False):
            relay.start()
            await ledger.settle(event)
        await until(lambda: {len(sink.taken) for sink in (shared, mine, others)} == {2})
        for ledger, relay in zip(ledgers, relays, strict=True):
            await relay.drain(DRAIN_S)
            await relay.aclose()
            await ledger.aclose()

    asyncio.run(go())
    for sink in (shared, mine, others):
        assert [event.id for event in sink.taken] == IDS[:2]


def test_a_relay_that_is_closed_lets_others_deliver_while_its_ledger_goes_on(uri: str) -> None:
    first, next_ = Taking(), Taking()

    async def go() -> None:
        ledger, other = ledger_of(uri), ledger_of(uri)
        relay, waiting = Relay(ledger, {"mine": first}), Relay(other, {"mine": next_})
        relay.start()
        await ledger.settle(EVENTS[0])
        await relay.drain(DRAIN_S)
        waiting.start()
        await relay.aclose()
        await ledger.settle(EVENTS[1])
        await until(lambda: bool(next_.taken))
        await waiting.aclose()
        await ledger.aclose()
        await other.aclose()

    asyncio.run(go())
    assert [event.id for event in next_.taken] == IDS[1:2]


def test_a_child_made_by_fork_does_not_keep_the_lock_of_its_dead_parent(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    code = """
import asyncio, os, sys, time
from inf_middleware.ledgers.sqlite import SqliteLedger
ledger = SqliteLedger(sys.argv[1])
async def main():
    assert await ledger.elect("mine")
    if not os.fork():
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    os._exit(0)
asyncio.run(main())
"""
    with outlived_by_a_child(code, str(path)):

        async def go() -> Any:
            ledger = SqliteLedger(path)
            elected = await ledger.elect("mine")
            await ledger.aclose()
            return elected

        assert asyncio.run(go())
