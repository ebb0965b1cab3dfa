"""Bills are written to the file that has the ledger's name, or to none: others are found by nobody.

An operator may delete it below its server, or restore a backup over it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.looking import accounts_version
from inf_middleware.ledgers.spool import SpoolingLedger
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of
from tests.kit import records_of

GONE = "was deleted or replaced while it was in use: put the file back, or stop all"


def run(path: Path, go: Callable[[SqliteLedger], Awaitable[None]]) -> None:
    """Run a story with a ledger that has one bill."""

    async def story() -> None:
        ledger = SqliteLedger(path)
        await ledger.settle(event_of(0))
        await ledger.read(accounts_version)
        try:
            await go(ledger)
        finally:
            await ledger.aclose()

    asyncio.run(story())


async def refused(ledger: SqliteLedger) -> None:
    for asked in (ledger.settle(event_of(1)), ledger.read(accounts_version)):
        with pytest.raises(LedgerUnavailable, match=GONE):
            await asked


def delete(path: Path) -> None:
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


def move(path: Path) -> None:
    path.rename(path.with_suffix(".away"))


def put_back(path: Path) -> None:
    path.with_suffix(".away").rename(path)


def replace(path: Path) -> None:
    other = path.with_suffix(".backup")
    run(other, lambda _: asyncio.sleep(0))
    other.replace(path)


@pytest.mark.parametrize("happens", [delete, move, replace])
def test_what_nobody_would_find_is_not_written_and_told_so(
    happens: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "ledger.db"

    async def go(ledger: SqliteLedger) -> None:
        await asyncio.to_thread(happens, path)
        await refused(ledger)

    run(path, go)
    if happens is not replace:
        assert not path.exists()


def test_a_file_that_is_put_back_is_written_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    later = event_of(2)

    async def go(ledger: SqliteLedger) -> None:
        move(path)
        await refused(ledger)
        put_back(path)
        await ledger.settle(later)
        assert await ledger.read(accounts_version) == 0

    run(path, go)
    assert [record["request_id"] for record in records_of(path)][1:] == [later.id]


def test_bills_are_kept_while_it_is_gone_and_handed_over_when_it_is_back(tmp_path: Path) -> None:
    path, bill = tmp_path / "ledger.db", event_of(1)

    async def go(ledger: SqliteLedger) -> None:
        spool = SpoolingLedger(ledger, tmp_path / "spool")
        move(path)
        with pytest.raises(LedgerUnavailable, match=GONE):
            await spool.settle(bill)
        await spool.keep(bill)
        put_back(path)
        await spool.stop()

    run(path, go)
    assert len(records_of(path)) == 2


def test_a_process_that_goes_to_another_folder_goes_on_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(here)

    async def go(ledger: SqliteLedger) -> None:
        monkeypatch.chdir(elsewhere)
        await ledger.aclose()  # as a fork does, or a full disk
        await ledger.settle(event_of(1))

    run(Path("ledger.db"), go)
    assert len(records_of(here / "ledger.db")) == 2
    assert list(elsewhere.iterdir()) == []


def test_it_is_told_by_the_heartbeat_in_the_same_words(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "ledger.db"

    async def go(ledger: SqliteLedger) -> None:
        writer: Any = ledger._writer
        delete(path)
        writer._next_beat = 0.0
        await refused(ledger)  # the writer is woken
        await ledger.aclose()

    run(path, go)
    (warned,) = [record for record in caplog.records if "heartbeat" in record.message]
    assert warned.message.startswith(
        f"the ledger's heartbeat failed: the ledger {path} was deleted"
    )
