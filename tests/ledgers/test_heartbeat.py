"""A process that holds money says that it lives, whatever else it does."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import apsw
import pytest

from inf_middleware.domain.ids import uuid7
from inf_middleware.ledgers import holds
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ledgers.steps import Ask, Steps
from inf_middleware.ledgers.writer import BATCH_MAX
from tests.events import event_of
from tests.ledgers.conftest import Opened

BEAT_S = 0.05


@pytest.fixture
def _beats_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "BEAT_S", BEAT_S)


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
        beat = ledger._writer._beat

        def failing() -> Steps[Any]:
            for failure in failures:
                raise failure
            return beat()

        monkeypatch.setattr(ledger._writer, "_beat", failing)
        await beats(ledger, 4)
        await ledger.aclose()

    asyncio.run(go())
    assert next(failures, None) is None
