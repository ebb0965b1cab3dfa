"""A ledger that is away costs no customer an answer and no operator a bill."""

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import BillingEvent, CostLedger
from inf_middleware.call.health import PROBE_S, LedgerHealth
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers import spool_file
from inf_middleware.ledgers.spool import SpoolingLedger
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.events import event_of
from tests.kit import CHAT, Clock, reading, records_of

ROOT = Path(__file__).parent.parent.parent


class Switched:
    """A ledger that is away at will, and refuses what it is told to."""

    def __init__(self, path: Path) -> None:
        self.real = SqliteLedger(path)
        self.away = False
        self.tries = 0
        self.probes = 0
        self.refuses: set[str] = set()

    async def settle(self, event: BillingEvent) -> None:
        self.tries += 1
        if self.away or event.id in self.refuses:
            raise LedgerUnavailable("away")
        await self.real.settle(event)

    async def probe(self) -> None:
        self.probes += 1
        if self.away:
            raise LedgerUnavailable("away")

    async def is_recorded(self, request_id: str) -> bool:
        return await self.real.is_recorded(request_id)

    async def aclose(self) -> None:
        await self.real.aclose()


def ids(path: Path) -> list[str]:
    return [record["request_id"] for record in records_of(path)] if path.is_file() else []


async def handed_over(path: Path, count: int) -> None:
    async with asyncio.timeout(20):
        while len(ids(path)) < count:  # noqa: ASYNC110 - another task, or process, hands over
            await asyncio.sleep(0.01)


def spooled(folder: Path) -> list[str]:
    return [
        BillingEvent.decode(line).id
        for file in folder.glob("*.jsonl")
        for line in file.read_bytes().splitlines()
    ]


def test_what_the_ledger_does_not_take_is_kept_and_handed_over_once(tmp_path: Path) -> None:
    path, folder = tmp_path / "l.db", tmp_path / "spool"
    events = [event_of(n) for n in range(20)]

    async def go() -> None:
        switched = Switched(path)
        ledger = SpoolingLedger(switched, folder)
        await ledger.settle(events[0])
        switched.away = True
        await asyncio.gather(*(ledger.keep(event) for event in events[1:10]))
        assert sorted(spooled(folder)) == sorted(event.id for event in events[1:10])
        tries = switched.tries
        await asyncio.gather(*(ledger.settle(event) for event in events[10:]))
        assert switched.tries - tries < 10  # nobody waits for a ledger that is known to be away
        switched.away = False
        await handed_over(path, 20)
        await ledger.settle(event_of(99))
        await ledger.aclose()

    asyncio.run(go())
    assert len(set(ids(path))) == 21
    assert list(folder.iterdir()) == []


def test_what_is_kept_is_durable_and_handed_over_by_the_next_process(tmp_path: Path) -> None:
    path, folder = tmp_path / "l.db", tmp_path / "spool"
    code = """
import asyncio, os, sys
from pathlib import Path
from inf_middleware.ledgers.spool import SpoolingLedger
from tests.events import event_of
from tests.ledgers.test_spool import Switched

async def main():
    switched = Switched(Path(sys.argv[1]))
    switched.away = True
    ledger = SpoolingLedger(switched, Path(sys.argv[2]))
    for number in range(5):
        event = event_of(number)
        await ledger.keep(event)
        print(event.id, flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(path), str(folder)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    kept = ran.stdout.split()
    assert len(kept) == 5, ran.stderr
    (file,) = folder.glob("*.jsonl")
    with file.open("ab") as torn:  # the process was killed within a line that nobody was told of
        torn.write(event_of(9).encode()[:100])

    async def go() -> None:
        ledger = SpoolingLedger(SqliteLedger(path), folder)
        await ledger.start()
        await handed_over(path, 5)
        async with asyncio.timeout(20):
            while list(folder.iterdir()):  # noqa: ASYNC110 - forgotten once it is handed over
                await asyncio.sleep(0.01)
        await ledger.aclose()

    asyncio.run(go())
    assert sorted(ids(path)) == sorted(kept)


def test_a_file_of_a_process_that_lives_is_left_to_it(tmp_path: Path) -> None:
    path, folder = tmp_path / "l.db", tmp_path / "spool"

    async def go() -> None:
        switched = Switched(path)
        switched.away = True
        owner = SpoolingLedger(switched, folder)
        await owner.keep(event_of())
        other = SpoolingLedger(SqliteLedger(path), folder)
        await other.start()
        await other._replay()
        assert spooled(folder) != []
        await other.aclose()
        switched.away = False
        await owner.aclose()

    asyncio.run(go())
    assert len(ids(path)) == 1
    assert spooled(folder) == []


def test_the_spool_is_bounded_and_a_full_one_refuses(tmp_path: Path) -> None:
    async def go() -> None:
        switched = Switched(tmp_path / "l.db")
        switched.away = True
        event = event_of()
        room = 3 * (len(event.encode()) + 1)
        ledger = SpoolingLedger(switched, tmp_path / "spool", bytes_max=room)
        for _ in range(3):
            await ledger.keep(event)
        with pytest.raises(LedgerUnavailable, match="full"):
            await ledger.keep(event)
        switched.away = False
        await ledger.aclose()

    asyncio.run(go())


@pytest.mark.parametrize("begun", [False, True])
def test_one_whose_waiter_is_cancelled_is_kept_once_and_the_others_of_its_flush_are_told(
    begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "l.db", tmp_path / "spool"
    events = [event_of(n) for n in range(5)]
    writing, cancelled = threading.Event(), threading.Event()

    def write(file: int, data: bytes) -> None:
        writing.set()
        assert cancelled.wait(20)
        spool_write(file, data)

    spool_write = spool_file.write
    monkeypatch.setattr(spool_file, "write", write)

    async def go() -> None:
        switched = Switched(path)
        switched.away = True
        ledger = SpoolingLedger(switched, folder)
        if not begun:
            ledger._executor().submit(cancelled.wait, 20)  # the flush comes after the cancelling
        keeping = [asyncio.create_task(ledger.keep(event)) for event in events]
        await asyncio.sleep(0)
        if begun:
            await asyncio.to_thread(writing.wait, 20)
        keeping[0].cancel()
        await asyncio.sleep(0)
        cancelled.set()
        async with asyncio.timeout(5):
            results = await asyncio.gather(*keeping, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError, *[type(None)] * 4]
        switched.away = False
        await handed_over(path, 5)
        await ledger.aclose()

    asyncio.run(go())
    assert sorted(ids(path)) == sorted(event.id for event in events)


def test_whatever_the_disk_raises_those_who_wait_for_it_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(file: int, data: bytes) -> None:
        raise MemoryError

    monkeypatch.setattr(spool_file, "write", write)

    async def go() -> None:
        switched = Switched(tmp_path / "l.db")
        switched.away = True
        ledger = SpoolingLedger(switched, tmp_path / "spool")
        with pytest.raises(LedgerUnavailable):
            async with asyncio.timeout(5):
                await ledger.keep(event_of())
        await ledger.aclose()

    asyncio.run(go())


def test_bills_kept_while_others_are_handed_over_are_not_lost(tmp_path: Path) -> None:
    path, folder = tmp_path / "l.db", tmp_path / "spool"
    total = 600

    async def go() -> None:
        switched = Switched(path)
        ledger = SpoolingLedger(switched, folder)
        for start in range(0, total, 50):
            await asyncio.gather(*(ledger.keep(event_of(start + n)) for n in range(50)))
            await ledger._replay()
        await handed_over(path, total)
        await ledger.aclose()

    asyncio.run(go())
    assert len(set(ids(path))) == total


def test_a_ledger_that_stays_away_is_told_of_once_and_once_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("inf_middleware.ledgers.spool.REPLAY_S", 0.01)

    async def go() -> None:
        switched = Switched(tmp_path / "l.db")
        ledger = SpoolingLedger(switched, tmp_path / "spool")
        for count in (1, 2):
            switched.away, tries = True, switched.tries
            await ledger.keep(event_of(count))
            async with asyncio.timeout(20):
                while switched.tries < tries + 5:  # noqa: ASYNC110 - another task hands over
                    await asyncio.sleep(0.01)
            switched.away = False
            await handed_over(tmp_path / "l.db", count)
            await asyncio.sleep(0.05)
        await ledger.aclose()

    asyncio.run(go())
    told = [record.getMessage() for record in caplog.records]
    assert told.count("kept bills cannot be handed over yet: away") == 2
    assert told.count("kept bills can be handed over again") == 2


def test_a_ledger_that_is_away_costs_no_customer_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "l.db"

    async def go() -> list[str]:
        app = CostLedger(
            JsonApp(completion(usage=usage_of(10, 5))),
            ledger=f"sqlite:///{path}",
            settle_timeout_s=0,
        )
        answers = [await post(app, CHAT)]
        path.rename(tmp_path / "gone.db")
        path.mkdir()  # nothing can be opened there
        worker = app._stack.worker
        await worker._parts.billing.spool.ledger.aclose()
        answers += [await post(app, CHAT) for _ in range(5)]
        assert [answer.status for answer in answers] == [200] * 6
        path.rmdir()
        (tmp_path / "gone.db").rename(path)
        await handed_over(path, 6)
        await worker._parts.billing.ledger.aclose()
        return [answer.headers["request-id"] for answer in answers]

    assert set(asyncio.run(go())) == set(ids(path))


def test_after_a_bill_was_lost_nobody_is_served_until_the_ledger_can_be_written(
    tmp_path: Path,
) -> None:
    switched = Switched(tmp_path / "l.db")
    model = JsonApp(completion(usage=usage_of(10, 5)))
    app = CostLedger(model, ledger=switched, settle_timeout_s=0, on_ledger_error="refuse")

    async def go() -> None:
        assert (await post(app, CHAT)).status == 200
        switched.away = True
        assert (await post(app, CHAT)).status == 503  # it was served, and is not billed
        refused = await post(app, CHAT)
        assert (refused.status, refused.json["error"]["code"]) == (503, "ledger_unavailable")
        assert refused.headers["retry-after"] == "1"
        assert len(model.bodies) == 2

    asyncio.run(go())
    assert len(ids(tmp_path / "l.db")) == 1


def test_a_ledger_that_failed_is_tried_once_a_second_and_trusted_again() -> None:
    clock = Clock()
    away = True
    probes = 0

    async def probe() -> None:
        nonlocal probes
        probes += 1
        if away:
            raise LedgerUnavailable("away")

    async def go() -> None:
        nonlocal away
        health = LedgerHealth(probe, clock=clock)
        assert await health.ready()
        assert probes == 0
        health.failed()
        assert [await health.ready() for _ in range(3)] == [False] * 3
        clock.now += PROBE_S
        assert [await health.ready() for _ in range(3)] == [False] * 3
        assert probes == 1
        away = False
        clock.now += PROBE_S
        assert [await health.ready() for _ in range(3)] == [True] * 3
        assert probes == 2

    asyncio.run(go())


def test_a_file_that_cannot_be_written_fails_what_waits_and_heals(tmp_path: Path) -> None:
    path = tmp_path / "l.db"

    async def go() -> Any:
        ledger = SqliteLedger(path)
        await ledger.settle(event_of(0))
        await ledger.aclose()
        with reading(path) as db:  # held by another for longer than we wait
            db.execute("BEGIN IMMEDIATE")
            results = await asyncio.gather(
                *(ledger.settle(event_of(n)) for n in (1, 2)), return_exceptions=True
            )
            db.execute("ROLLBACK")
        assert [type(result) for result in results] == [LedgerUnavailable] * 2
        await ledger.settle(event_of(3))
        await ledger.aclose()

    asyncio.run(go())
    assert len(ids(path)) == 2


def test_a_spool_that_cannot_be_rewritten_at_the_end_is_closed_and_its_bills_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "l.db", tmp_path / "spool"

    def drop(own: spool_file.SpoolFile, end: int) -> None:
        raise OSError("the disk is full")

    async def go() -> None:
        switched = Switched(path)
        switched.away = True
        ledger = SpoolingLedger(switched, folder)
        await ledger.keep(event_of())
        switched.away = False
        with monkeypatch.context() as patch:
            patch.setattr(spool_file.SpoolFile, "drop", drop)
            await ledger.stop()
        (file,) = folder.glob("*.jsonl")
        assert spool_file.is_orphan(file)
        later = SpoolingLedger(switched, folder)
        await later._replay()
        await later.aclose()

    asyncio.run(go())
    assert len(ids(path)) == 1
    assert list(folder.iterdir()) == []


def test_the_spool_itself_on_a_full_disk_refuses_and_keeps_nothing_half(tmp_path: Path) -> None:
    code = """
import asyncio, resource, signal, sys
from pathlib import Path
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.spool import SpoolingLedger
from tests.events import event_of
from tests.ledgers.test_spool import Switched, ids, spooled

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def main():
    path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    switched = Switched(path)
    switched.away = True
    ledger = SpoolingLedger(switched, folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
    kept = []
    failed = 0
    for number in range(20):
        event = event_of(number)
        try:
            await ledger.keep(event)
            kept.append(event.id)
        except LedgerUnavailable:
            failed += 1
    assert failed and kept and spooled(folder) == kept, (failed, kept)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    event = event_of(99)
    await ledger.keep(event)
    switched.away = False
    await ledger.aclose()
    assert sorted(ids(path)) == sorted([*kept, event.id])

asyncio.run(main())
"""
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "l.db"), str(tmp_path / "spool")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ,
    )
    assert ran.returncode == 0, ran.stderr
