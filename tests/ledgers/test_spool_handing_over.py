"""What a ledger never takes keeps nothing else waiting, and is told from a ledger that is away."""

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from inf_middleware import BillingEvent
from inf_middleware.domain.books import Claim, Claimed
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers import spool
from inf_middleware.ledgers.handing_over import UNDECIDED_S_MAX, Undecided
from inf_middleware.ledgers.spool import SpoolingLedger
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of
from tests.kit import Clock
from tests.ledgers.test_spool import Switched, handed_over, ids, spooled


async def until_empty(folder: Path) -> None:
    async with asyncio.timeout(5):
        while spooled(folder):  # noqa: ASYNC110 - of a thread
            await asyncio.sleep(0.01)


def set_aside(folder: Path) -> list[str]:
    lines = (folder / "refused").read_bytes().splitlines()
    return [BillingEvent.decode(line).id for line in lines]


def test_one_that_the_ledger_never_takes_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    path, folder = tmp_path / "l.db", tmp_path / "spool"
    events = [event_of(n) for n in range(3)]

    async def go() -> None:
        switched = Switched(path)
        switched.away = True
        ledger = SpoolingLedger(switched, folder)
        for event in events:
            await ledger.keep(event)
        switched.away, switched.refuses = False, {events[1].id}
        await handed_over(path, 2)
        await ledger.aclose()

    asyncio.run(go())
    assert sorted(ids(path)) == sorted([events[0].id, events[2].id])
    assert set_aside(folder) == [events[1].id]


@pytest.mark.parametrize("away_for", [1, 30, 31, 32, 60])
def test_a_ledger_that_fails_within_a_hand_over_gets_all_of_it_later(
    away_for: int, tmp_path: Path
) -> None:
    path, folder = tmp_path / "l.db", tmp_path / "spool"
    events = [event_of(n) for n in range(60)]

    class Failing(Switched):
        """Is away for some tries in the middle of a hand-over."""

        async def settle(self, event: BillingEvent) -> None:
            if not self.away and 30 <= self.tries < 30 + away_for:
                self.tries += 1
                raise LedgerUnavailable("away")
            await super().settle(event)

        async def probe(self) -> None:
            if 30 <= self.tries < 30 + away_for:
                raise LedgerUnavailable("away")

    async def go() -> None:
        failing = Failing(path)
        failing.away = True
        ledger = SpoolingLedger(failing, folder)
        await asyncio.gather(*(ledger.keep(event) for event in events))
        await ledger.stop()
        failing.tries, failing.away = 0, False
        ledger = SpoolingLedger(failing, folder)
        for _ in range(4):
            with contextlib.suppress(LedgerUnavailable):
                await ledger._replay()
        await ledger.aclose()

    asyncio.run(go())
    assert sorted(ids(path)) == sorted(event.id for event in events)
    assert list(folder.iterdir()) == []


def test_one_that_is_never_taken_alone_in_its_file_keeps_no_other_file_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "REPLAY_S", 0.01)
    path, folder = tmp_path / "l.db", tmp_path / "spool"
    bad, good = event_of(1), event_of(2)

    async def go() -> None:
        switched = Switched(path)
        switched.away, switched.refuses = True, {bad.id}
        earlier = SpoolingLedger(switched, folder)
        await earlier.keep(bad)
        await earlier.stop()
        ledger = SpoolingLedger(switched, folder)
        await ledger.keep(good)
        switched.away = False
        await handed_over(path, 1)
        await until_empty(folder)
        await ledger.aclose()

    asyncio.run(go())
    assert ids(path) == [good.id]
    assert set_aside(folder) == [bad.id]


def test_one_that_is_never_taken_is_set_aside_where_the_ledger_takes_others_without_the_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "REPLAY_S", 0.01)
    path, folder = tmp_path / "l.db", tmp_path / "spool"
    bad, good = replace(event_of(1), amount_nano=str(2**63)), event_of(2)
    folder.mkdir()
    (folder / "0.jsonl").write_bytes(bad.encode() + b"\n")

    async def go() -> None:
        ledger = SpoolingLedger(SqliteLedger(path), folder)
        await ledger.start()
        with pytest.raises(Undecided):
            await ledger._replay()
        await ledger.settle(good)
        await until_empty(folder)
        await ledger.aclose()

    asyncio.run(go())
    assert ids(path) == [good.id]
    assert set_aside(folder) == [bad.id]


def test_a_file_of_which_nothing_is_decided_is_tried_ever_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "REPLAY_S", 0.001)
    clock = Clock()
    path, folder = tmp_path / "l.db", tmp_path / "spool"
    bad = event_of(1)
    folder.mkdir()
    (folder / "0.jsonl").write_bytes(bad.encode() + b"\n")

    class Counted(Switched):
        rounds = 0

    async def tries_within(switched: Counted, seconds: int, step: int = 1) -> int:
        before = switched.probes
        for _ in range(0, seconds, step):
            clock.now += step
            rounds = switched.rounds
            while switched.rounds < rounds + 2:  # noqa: ASYNC110 - of another task
                await asyncio.sleep(0.001)
        return switched.probes - before

    async def go() -> None:
        switched = Counted(path)
        switched.refuses = {bad.id}
        ledger = SpoolingLedger(switched, folder, clock=clock)
        replay_files = ledger._replay_files

        async def replaying(pool: Any) -> None:
            switched.rounds += 1
            await replay_files(pool)

        monkeypatch.setattr(ledger, "_replay_files", replaying)
        await ledger.start()
        assert await tries_within(switched, 62) == 6  # at once, then after 1, 2, 4, 8 and 16 s
        assert await tries_within(switched, 3_600, 20) <= 3_600 / UNDECIDED_S_MAX + 3
        await ledger.settle(event_of(2))
        assert await tries_within(switched, int(UNDECIDED_S_MAX) + 20, 20) > 0
        await ledger.aclose()

    asyncio.run(go())
    assert [file.name for file in folder.iterdir()] == ["refused"]
    told = [record.getMessage() for record in caplog.records]
    assert sum("cannot be handed over yet" in line for line in told) == 1
    assert sum("can be handed over again" in line for line in told) == 1


def test_a_file_of_which_nothing_is_decided_is_tried_at_once_where_it_has_grown(
    tmp_path: Path,
) -> None:
    path, folder = tmp_path / "l.db", tmp_path / "spool"
    bad, good = event_of(1), event_of(2)

    async def go() -> None:
        switched = Switched(path)
        switched.refuses = {bad.id}
        ledger = SpoolingLedger(switched, folder, clock=Clock())
        await ledger.keep(bad)
        await ledger._handing_over.end()
        with contextlib.suppress(Undecided):
            await ledger._replay()
        assert ids(path) == []
        probes = switched.probes
        with pytest.raises(Undecided):
            await ledger._replay()
        assert switched.probes == probes
        await ledger.keep(good)
        await handed_over(path, 1)
        await ledger.aclose()

    asyncio.run(go())
    assert ids(path) == [good.id]


def test_one_that_was_offered_and_not_taken_does_not_decide_of_others(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    kept, offered = event_of(1), event_of(2)
    folder.mkdir()
    (folder / "0.jsonl").write_bytes(kept.encode() + b"\n")

    async def go() -> None:
        switched = Switched(tmp_path / "l.db")
        switched.refuses = {kept.id, offered.id}
        ledger = SpoolingLedger(switched, folder)
        with pytest.raises(LedgerUnavailable):
            await ledger.settle(offered)
        with pytest.raises(Undecided):
            await ledger._replay()
        await ledger.aclose()

    asyncio.run(go())
    assert spooled(folder) == [kept.id]
    assert not (folder / "refused").exists()


def test_what_decides_of_others_says_nothing_more_of_its_own_key(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    folder.mkdir()
    bad = replace(event_of(1), amount_nano=str(2**63))
    (folder / "0.jsonl").write_bytes(bad.encode() + b"\n")
    bill = event_of(2, idempotency_key="k1")

    def claim(request_id: str) -> Claim:
        return Claim("acme", "k1", "f", request_id)

    async def go() -> None:
        sqlite = SqliteLedger(tmp_path / "l.db")
        ledger = SpoolingLedger(sqlite, folder)
        await sqlite.claim(claim(bill.id))
        await sqlite.settle(bill)
        await sqlite.void(bill.id)  # its key runs again
        ledger._hand.offered = bill
        await ledger._replay()
        assert (folder / "refused").exists()
        assert await sqlite.claim(claim("again")) == Claimed("claimed", bill.id)
        await ledger.aclose()

    asyncio.run(go())


def test_nothing_is_set_aside_while_the_ledger_cannot_be_written(tmp_path: Path) -> None:
    path, folder = tmp_path / "l.db", tmp_path / "spool"
    events = [event_of(n) for n in range(3)]

    class Full(Switched):
        """Takes again what it has, and nothing new."""

        async def settle(self, event: BillingEvent) -> None:
            if self.tries > 3 and event.id not in ids(path):
                raise LedgerUnavailable("the disk is full")
            await super().settle(event)

        async def probe(self) -> None:
            raise LedgerUnavailable("the disk is full")

    async def go() -> None:
        full = Full(path)
        full.away = True
        ledger = SpoolingLedger(full, folder)
        await asyncio.gather(*(ledger.keep(event) for event in events))
        await ledger.stop()
        full.away, full.tries, full.refuses = False, 0, {events[1].id}
        ledger = SpoolingLedger(full, folder)
        with pytest.raises(LedgerUnavailable, match="full"):
            await ledger._replay()
        await ledger.stop()
        await full.aclose()

    asyncio.run(go())
    assert sorted(ids(path)) == sorted([events[0].id, events[2].id])
    assert sorted(spooled(folder)) == sorted(event.id for event in events)
    assert not (folder / "refused").exists()
