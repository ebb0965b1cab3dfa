"""A process that holds money says that it lives, whatever else it does."""

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import apsw
import asyncpg
import pytest

from inf_middleware import Usage
from inf_middleware.domain.ids import uuid7
from inf_middleware.ledgers import connection, holds
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.heart import Heart
from inf_middleware.ledgers.postgres_steps import _WRITER_LOCK
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ledgers.steps import Ask, Steps
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.ledgers.writer import BATCH_MAX
from tests.events import event_of
from tests.ledgers.conftest import Opened

BEAT_S = 0.05


@pytest.fixture
def _beats_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "BEAT_S", BEAT_S)


class Moved(Heart):
    """On a clock that is moved by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1_000.0

    def now_ms(self) -> int:
        return round(self.now_s * 1000)


@contextlib.asynccontextmanager
async def nobody_writes(uri: str) -> Any:
    """Have the lock of writers, as whoever keeps a ledger from being written."""
    if uri.startswith("sqlite"):
        with contextlib.closing(apsw.Connection(uri.removeprefix("sqlite:///"))) as db:
            db.execute("BEGIN IMMEDIATE")
            yield
    else:
        locked = await asyncpg.connect(uri)
        await locked.execute(f"SELECT pg_advisory_lock({_WRITER_LOCK})")
        yield
        await locked.close()


def told() -> Steps[Any]:
    return (yield Ask("SELECT beat_ms FROM process"))


async def beats(ledger: LedgerBase, count: int) -> None:
    """Return once as many beats were seen."""
    seen = set()
    async with asyncio.timeout(5):
        while len(seen) < count:
            seen.update(await ledger.read(told))
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def load(clients: int, work: Callable[[], Awaitable[Any]]) -> Any:
    """Have clients ask without a pause."""
    stopped = False

    async def ask() -> None:
        while not stopped:
            await work()

    asking = [asyncio.create_task(ask()) for _ in range(clients)]
    try:
        yield
    finally:
        stopped = True
        await asyncio.gather(*asking)


@pytest.mark.usefixtures("_beats_often")
@pytest.mark.parametrize("clients", [64, BATCH_MAX])
def test_a_process_beats_while_bills_come_without_a_pause(clients: int, opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        await book.ledger.hold(event_of(1), 10**8, 0)

        def settle() -> Awaitable[None]:
            return book.ledger.settle(event_of(2, request_id=uuid7(0), account="other"))

        async with load(clients, settle):
            await beats(book.ledger, 4)

    opened.run(go)


@pytest.mark.usefixtures("_beats_often")
def test_a_process_beats_while_other_work_of_the_writer_comes_without_a_pause(
    tmp_path: Any,
) -> None:
    async def go() -> None:
        ledger = SqliteLedger(tmp_path / "l.db")
        await ledger.hold(event_of(1), 10**8, 10**9)
        async with load(8, lambda: ledger._writer.run_job(lambda _: None)):
            await beats(ledger, 4)
        await ledger.aclose()

    asyncio.run(go())


@pytest.mark.usefixtures("_beats_often")
def test_a_process_with_nothing_else_to_do_beats_again_after_its_file_failed(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: Iterator[Exception] = iter([apsw.FullError("full"), apsw.IOError("failed")])

    async def go() -> None:
        ledger = SqliteLedger(tmp_path / "l.db")
        await ledger.hold(event_of(1), 10**8, 10**9)
        beat = ledger._heart.beat

        def failing() -> Steps[Any]:
            for failure in failures:
                raise failure
            return beat()

        monkeypatch.setattr(ledger._heart, "beat", failing)
        await beats(ledger, 4)
        await ledger.aclose()

    asyncio.run(go())
    assert next(failures, None) is None


def standing() -> Steps[Any]:
    holding = yield Ask("SELECT request_id FROM hold ORDER BY request_id")
    bills = yield Ask("SELECT request_id, outcome FROM request WHERE kind = 'usage' ORDER BY seq")
    return [row[0] for row in holding], [tuple(row) for row in bills]


def test_after_nobody_could_write_for_longer_than_a_lease_who_lives_keeps_what_it_holds(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease_s = 1.2
    monkeypatch.setattr(holds, "LEASE_S", lease_s)
    monkeypatch.setattr(holds, "BEAT_S", lease_s / 3)
    monkeypatch.setattr(connection, "BUSY_TIMEOUT_S", 0.05)

    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        mine, others = (event_of(n, usage=Usage(0, 0), outcome="worker_lost") for n in (1, 2))
        await book.ledger.hold(mine, 10**8, 0)
        await asyncio.sleep(lease_s / 6)  # the other's beats come at other times
        other = ledger_of(opened.uri)
        await other.hold(others, 10**8, 0)
        await asyncio.sleep(lease_s * 2)
        async with nobody_writes(opened.uri):
            await asyncio.sleep(lease_s * 1.5)
        await asyncio.sleep(lease_s * 2)
        assert await book.ledger.read(standing) == ([mine.id, others.id], [])
        await other.aclose()
        async with asyncio.timeout(20):
            while len((await book.ledger.read(standing))[0]) > 1:  # noqa: ASYNC110 - of a thread
                await asyncio.sleep(0.01)
        assert await book.ledger.read(standing) == ([mine.id], [(others.id, "worker_lost")])

    opened.run(go)


class Beating:
    """Processes of one ledger on one clock, of which the first that held anything is gone."""

    def __init__(self, book: LedgerBook) -> None:
        self.now_s = 1_100.0
        self._book = book

    async def hold(self) -> None:
        dead = Moved()
        await self._book.recharge("acme", "1", reference="r")
        held = await self._book.ledger.transact(
            lambda: holds.hold(event_of(1), 10**8, 0, dead.owner(), dead.now_ms())
        )
        assert held is None

    async def beat(self, after_s: float, *, heart: Heart, taken: bool = True) -> int:
        """Beat after a while; return how many holds were ended."""
        assert isinstance(heart, Moved)
        self.now_s += after_s
        heart.now_s = self.now_s
        if not taken:
            heart.missed()
            return 0
        ended: int = await self._book.ledger.transact(heart.beat)
        heart.beaten()
        return ended


def test_what_others_held_ends_once_there_were_beats_for_a_lease_without_a_gap(
    opened: Opened,
) -> None:
    async def go(book: LedgerBook) -> None:
        beating, heart = Beating(book), Moved()
        await beating.hold()

        async def beat(after_s: float, *, taken: bool = True) -> int:
            return await beating.beat(after_s, heart=heart, taken=taken)

        assert [await beat(10) for _ in range(3)] == [0] * 3
        assert await beat(9.999) == 0  # a moment too early
        assert await beat(0, taken=False) == 0
        assert [await beat(10) for _ in range(3)] == [0] * 3
        assert await beat(15.001) == 0  # all stood still for a while
        assert await beat(15) == 0
        assert await beat(-50) == 0  # a server's clock goes back
        assert [await beat(10) for _ in range(2)] == [0] * 2
        assert await beat(10) == 1

    opened.run(go)


def test_a_process_that_is_started_again_and_again_goes_on_with_the_beats_before_it(
    opened: Opened,
) -> None:
    async def go(book: LedgerBook) -> None:
        beating = Beating(book)
        await beating.hold()
        lives = [Moved() for _ in range(3)]
        assert [await beating.beat(10, heart=heart) for heart in lives] == [0] * 3
        assert await beating.beat(15.001, heart=Moved()) == 0  # nobody was there for too long
        lives = [Moved() for _ in range(4)]
        after_s = (12, 8, 9.9, 0.1)
        ended = [await beating.beat(s, heart=h) for s, h in zip(after_s, lives, strict=True)]
        assert ended == [0, 0, 0, 1]

    opened.run(go)


def test_that_one_process_cannot_write_is_no_gap_where_others_beat(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        beating, heart, cut_off = Beating(book), Moved(), Moved()
        await beating.hold()
        assert await beating.beat(10, heart=cut_off) == 0
        assert await beating.beat(5, heart=heart) == 0
        for _ in range(2):
            assert await beating.beat(5, heart=cut_off, taken=False) == 0
            assert await beating.beat(5, heart=heart) == 0
        assert await beating.beat(5, heart=cut_off) == 1

    opened.run(go)


def test_a_beat_after_one_that_failed_is_a_gap_where_nobody_has_beaten_since(
    opened: Opened,
) -> None:
    async def go(book: LedgerBook) -> None:
        beating, heart, other = Beating(book), Moved(), Moved()
        await beating.hold()
        assert [await beating.beat(10, heart=heart) for _ in range(3)] == [0] * 3
        for one in (heart, other):
            assert await beating.beat(6, heart=one, taken=False) == 0
        assert await beating.beat(1, heart=other) == 0
        assert await beating.beat(9, heart=heart) == 0
        assert [await beating.beat(10, heart=other) for _ in range(2)] == [0] * 2
        assert await beating.beat(1, heart=heart) == 1

    opened.run(go)


@pytest.fixture
def _threads_take_turns_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_threads_take_turns_often")
def test_event_loops_of_several_threads_hold_as_one_process() -> None:
    ready = Barrier(4)

    def name(heart: Heart) -> str:
        ready.wait()
        return heart.owner()

    with ThreadPoolExecutor(4) as threads:
        for _ in range(500):
            heart = Moved()
            assert len(set(threads.map(name, [heart] * 4))) == 1


def test_where_nobody_holds_anything_a_beat_writes_nothing(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        assert await Beating(book).beat(10, heart=Moved()) == 0

    opened.run(go)
    assert opened.rows("SELECT count(*) FROM reference") == [(0,)]


def test_what_processes_of_an_earlier_boot_held_ends_with_the_first_beat(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        heart, dead = Moved(), Moved()
        heart.boot, dead.boot = "this", "that"

        def hold() -> Any:
            return holds.hold(event_of(1), 10**8, 0, dead.owner(), dead.now_ms())

        await book.ledger.transact(hold)
        ended: int = await book.ledger.transact(heart.beat)
        assert ended == 1

    opened.run(go)
