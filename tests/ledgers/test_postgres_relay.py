"""The relay's lock in PostgreSQL ends with the event loop that took it, however that ends."""

import asyncio
import gc
import threading
import warnings
from collections.abc import Callable
from functools import partial

import asyncpg
import pytest

from inf_middleware.ledgers.postgres import PostgresLedger
from tests.ledgers.postgres_server import PostgresServer


async def elected(ledger: PostgresLedger) -> bool:
    """Try as often as a relay that waits for its turn does in some seconds."""
    for _ in range(30):
        if await ledger.elect("mine"):
            return True
        await asyncio.sleep(0.1)
    return False


async def leave(ledger: PostgresLedger) -> None:
    assert await ledger.elect("mine")


def test_a_loop_that_ends_without_a_shutdown_lets_another_process_deliver(
    postgres: PostgresServer,
) -> None:
    uri = postgres.uri()
    ledger, other = PostgresLedger(uri), PostgresLedger(uri)
    asyncio.run(leave(ledger))

    async def go() -> None:
        assert await elected(other)
        assert not await ledger.elect("mine")
        await other.aclose()
        assert await elected(ledger)
        await ledger.aclose()

    asyncio.run(go())


@pytest.mark.parametrize("is_closed", [False, True])
def test_a_loop_that_stopped_with_all_its_tasks_is_succeeded_by_the_next_of_its_process(
    is_closed: bool, postgres: PostgresServer
) -> None:
    uri = postgres.uri()
    ledger, other = PostgresLedger(uri), PostgresLedger(uri)
    stopped = asyncio.new_event_loop()
    stopped.run_until_complete(leave(ledger))
    if is_closed:
        stopped.close()

    async def go() -> None:
        assert not await other.elect("mine")  # it knows nothing of that loop
        assert await elected(ledger)
        assert not await other.elect("mine")
        await other.aclose()

    asyncio.run(go())
    if not is_closed:  # it may go on, and is succeeded again
        assert stopped.run_until_complete(elected(ledger))
        stopped.run_until_complete(ledger.aclose())
        stopped.close()
        return
    with warnings.catch_warnings(action="ignore"):  # of what that loop has left, as was meant
        gc.collect()


def test_a_loop_of_another_thread_stays_the_relay_while_it_runs(postgres: PostgresServer) -> None:
    ledger = PostgresLedger(postgres.uri())
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever)
    thread.start()

    def there(ask: Callable[[], object]) -> object:
        return asyncio.run_coroutine_threadsafe(ask(), running).result(20)  # type: ignore[arg-type]

    async def go() -> None:
        for _ in range(2):
            assert not await ledger.elect("mine")
        await ledger.aclose()

    try:
        assert there(partial(ledger.elect, "mine"))
        asyncio.run(go())
        assert there(partial(ledger.elect, "mine"))
        there(ledger.aclose)
    finally:
        running.call_soon_threadsafe(running.stop)
        thread.join()
        running.close()


def test_sinks_have_locks_of_their_own_on_one_connection_that_ends_with_the_last(
    postgres: PostgresServer,
) -> None:
    uri = postgres.uri()
    connections = """SELECT count(DISTINCT pid) FROM pg_locks
        WHERE locktype = 'advisory' AND database =
            (SELECT oid FROM pg_database WHERE datname = current_database())"""

    async def go() -> None:
        ledger, other = PostgresLedger(uri), PostgresLedger(uri)
        seen = await asyncpg.connect(uri)
        assert await asyncio.gather(*(ledger.elect(sink) for sink in ("a", "b"))) == [True] * 2
        assert await seen.fetchval(connections) == 1
        asked = await asyncio.gather(*(other.elect(sink) for sink in ("a", "b", "c")))
        assert asked == [False, False, True]
        await ledger.resign("a")
        assert await other.elect("a")
        assert not await ledger.elect("a")
        assert await ledger.elect("b")
        await ledger.resign("b")
        assert await other.elect("b")
        assert await seen.fetchval(connections) == 1
        await seen.close()
        await ledger.aclose()
        await other.aclose()

    asyncio.run(go())
