"""A PostgreSQL with a standby: the one that takes writes is found among those a URI names."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.looking import accounts_version
from inf_middleware.ledgers.postgres import PostgresLedger
from tests.events import event_of
from tests.ledgers.postgres_server import PostgresServer, listening_deaf, serving_postgres
from tests.processes import free_ports

# A takeover is to be seen by the next connection; and what a busy machine takes beside.
TIMEOUT_S = 20.0


class Pair(NamedTuple):
    """A server and its standby; the `uri` names the standby first."""

    primary: PostgresServer
    standby: PostgresServer
    uri: str


@pytest.fixture
def pair() -> Iterator[Pair]:
    ports = free_ports(2)
    hosts = ",".join(f"127.0.0.1:{port}" for port in reversed(ports))
    with (
        serving_postgres(ports[0]) as primary,
        tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder,
    ):
        name = primary.uri().partition("?")[0].rpartition("/")[2]
        standby = PostgresServer(Path(folder), ports[1], copy_of=primary)
        standby.start()
        try:
            yield Pair(primary, standby, f"postgresql://postgres@{hosts}/{name}")
        finally:
            standby.stop()


def test_bills_go_to_the_server_that_takes_writes_whichever_is_named_first(pair: Pair) -> None:
    primary, standby, uri = pair

    async def replicated(id_: str) -> None:
        copy = PostgresLedger(uri.replace(f",127.0.0.1:{primary.port}", ""))
        async with asyncio.timeout(TIMEOUT_S):
            while not await copy.is_recorded(id_):  # noqa: ASYNC110 - of another server
                await asyncio.sleep(0.1)
        await copy.aclose()

    async def settle(ledger: PostgresLedger, number: int) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    return await ledger.settle(event_of(number))
                except LedgerUnavailable:
                    await asyncio.sleep(0.1)

    async def go() -> None:
        ledger, other, bill = PostgresLedger(uri), PostgresLedger(uri), event_of(1)
        await ledger.settle(bill)
        await ledger.read(accounts_version)
        assert await ledger.elect("mine")
        assert not await other.elect("mine")
        await replicated(bill.id)
        await asyncio.to_thread(primary.stop)
        await asyncio.to_thread(standby.promote)
        await settle(ledger, 2)
        assert await ledger.is_recorded(bill.id)
        assert await ledger.elect("mine")
        assert not await other.elect("mine")
        await ledger.aclose()
        await other.aclose()

    asyncio.run(go())


def test_a_server_that_says_nothing_keeps_no_bill_from_the_other(pair: Pair) -> None:
    async def go() -> None:
        async with listening_deaf() as deaf:
            ledger = PostgresLedger(
                pair.uri.replace("@", f"@127.0.0.1:{deaf.port},") + "?sslmode=disable"
            )
            async with asyncio.timeout(TIMEOUT_S):
                await ledger.settle(event_of(1))
            await ledger.read(accounts_version)
            assert await ledger.elect("mine")
            assert deaf.came == 1  # what was found is asked first from there on
            await ledger.aclose()

    asyncio.run(go())
