"""A host that stands still beside a PostgreSQL: others write and deliver, and it finds out."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import inf_middleware
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.postgres import PostgresLedger
from tests.events import event_of
from tests.ledgers.postgres_server import PostgresServer, serving_postgres
from tests.processes import Running, wait_until

ROOT = Path(__file__).parents[2]

# Its lock is free after so long, and the next try of somebody else has it; and what a busy machine
# takes beside.
SILENT_S, RELAY_SILENT_S, MARGIN_S = 5.0, 10.0, 10.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with serving_postgres() as server:
        yield server


# Stands still in the middle of a transaction, as it would with its host; then settles something.
WRITING = """
import asyncio, os, signal, sys
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.postgres import PostgresLedger
from inf_middleware.ledgers.steps import Ask
from tests.events import event_of

def stand_still():
    yield Ask("SELECT 1")
    print("stands still", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    yield Ask("SELECT 1")

async def main():
    ledger = PostgresLedger(sys.argv[1])
    try:
        await ledger.transact(stand_still)
    except LedgerUnavailable:
        print("found out", flush=True)
    await ledger.settle(event_of(2))
    print("settled", flush=True)
    await ledger.aclose()

asyncio.run(main())
"""


def child(code: str, uri: str, folder: Path) -> Running:
    package = Path(inf_middleware.__file__).parents[1]  # as it is tested here, faults put in or not
    env = {"PYTHONPATH": f"{package}:{ROOT}"}
    return Running([sys.executable, "-c", code, uri], folder / "said.txt", env=env)


def test_a_host_that_stands_still_in_a_transaction_keeps_no_other_from_billing(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    uri = postgres.uri()

    async def settle() -> None:
        ledger = PostgresLedger(uri)
        async with asyncio.timeout(SILENT_S + MARGIN_S):
            while True:
                try:
                    await ledger.settle(event_of(1))
                    break
                except LedgerUnavailable:
                    await asyncio.sleep(0.05)
        await ledger.aclose()

    frozen = child(WRITING, uri, tmp_path)
    try:
        wait_until(lambda: "stands still" in frozen.said(), "a transaction")
        asyncio.run(settle())
        frozen.resume()
        wait_until(lambda: "settled" in frozen.said(), "it goes on")
        assert "found out" in frozen.said()
    finally:
        frozen.stop()


# Is the relay, and stands still with its host; then tells whether it is still the one.
RELAYING = """
import asyncio, os, signal, sys
from inf_middleware.ledgers.postgres import PostgresLedger

async def main():
    ledger = PostgresLedger(sys.argv[1])
    assert await ledger.elect("mine")
    print("stands still", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    print("is the relay:", await ledger.elect("mine"), flush=True)
    await ledger.aclose()

asyncio.run(main())
"""


def test_a_relay_whose_host_stands_still_is_succeeded_within_seconds(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    uri = postgres.uri()

    async def go() -> None:
        ledger = PostgresLedger(uri)
        assert not await ledger.elect("mine")
        async with asyncio.timeout(RELAY_SILENT_S + MARGIN_S):
            while not await ledger.elect("mine"):  # noqa: ASYNC110 - a lock of the server tells nobody
                await asyncio.sleep(0.5)
        frozen.resume()
        await asyncio.to_thread(wait_until, lambda: "is the relay" in frozen.said(), "it goes on")
        assert "is the relay: False" in frozen.said()
        await ledger.aclose()

    frozen = child(RELAYING, uri, tmp_path)
    try:
        wait_until(lambda: "stands still" in frozen.said(), "an election")
        asyncio.run(go())
    finally:
        frozen.stop()


def test_a_relay_that_has_nothing_to_do_stays_it(postgres: PostgresServer) -> None:
    async def go() -> None:
        ledger = PostgresLedger(postgres.uri())
        assert await ledger.elect("mine")
        held = ledger._session().relay._connection
        await asyncio.sleep(RELAY_SILENT_S + 3)
        assert await ledger.elect("mine")
        assert ledger._session().relay._connection is held
        await ledger.aclose()

    asyncio.run(go())
