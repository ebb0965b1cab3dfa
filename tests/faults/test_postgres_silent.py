"""A PostgreSQL that takes connections and does not answer: nobody waits long, whoever waits too."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Iterator
from typing import Any

import asyncpg
import pytest

from inf_middleware import CostLedger
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.looking import accounts_version
from inf_middleware.ledgers.postgres import PostgresLedger
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.events import event_of
from tests.kit import CHAT, Closing, lifespan_through
from tests.ledgers.postgres_server import PostgresServer, listening_deaf, serving_postgres
from tests.ledgers.test_spool import spooled
from tests.processes import free_ports
from tests.tcp_proxy import TcpProxy, proxying

# What one question takes at most, so that a look-up with its two is within the 10 s of the docs;
# and what a busy machine takes beside.
BOUND_S, MARGIN_S = 5.0, 3.0

# What an answer's end waits for a bill: the default of `settle_timeout_s`.
SETTLED_S = 2.0

# As by hand in another session: that of who writes, as `postgres_steps` has it.
LOCKED = "BEGIN; SELECT pg_advisory_xact_lock(7311554620118)"


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[PostgresServer, TcpProxy]]:
    (port,) = free_ports(1)
    with serving_postgres(port) as server, proxying(port) as proxy:
        yield server, proxy


async def fails_in_time(asked: list[Awaitable[Any]]) -> None:
    begun = time.monotonic()
    tasks = [asyncio.ensure_future(one) for one in asked]
    await asyncio.wait(tasks, timeout=BOUND_S + MARGIN_S)
    took_s = time.monotonic() - begun
    assert [task.done() for task in tasks] == [True] * len(tasks), f"after {took_s:.1f} s"
    for task in tasks:
        assert isinstance(task.exception(), LedgerUnavailable)


async def shut_down(app: Any) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.shutdown"}

    async def send(message: dict[str, Any]) -> None: ...

    await lifespan_through(app, receive, send)


async def end(ledger: PostgresLedger, proxy: TcpProxy) -> None:
    """Have those who still wait told, and close."""
    await asyncio.to_thread(proxy.cut)
    await asyncio.to_thread(proxy.heal)
    await ledger.aclose()


def test_all_who_wait_for_a_database_that_says_nothing_are_told_after_one_attempt() -> None:
    async def go() -> None:
        async with listening_deaf() as deaf:
            ledger = PostgresLedger(
                f"postgresql://postgres@127.0.0.1:{deaf.port}/x?sslmode=disable"
            )
            reads = [ledger.read(accounts_version) for _ in range(8)]
            await fails_in_time([*reads, ledger.settle(event_of())])
            assert deaf.came == 1
            await ledger.aclose()

    asyncio.run(go())


def test_all_who_read_a_database_that_froze_are_told_together_and_read_when_it_is_back(
    server: tuple[PostgresServer, TcpProxy],
) -> None:
    postgres, proxy = server

    async def go() -> None:
        ledger = PostgresLedger(postgres.uris(proxy.port)[1])
        await asyncio.gather(*(ledger.read(accounts_version) for _ in range(8)))
        await asyncio.to_thread(proxy.partition)
        try:
            await fails_in_time([ledger.read(accounts_version) for _ in range(24)])
            await asyncio.to_thread(proxy.cut)
            await asyncio.to_thread(proxy.heal)
            assert await ledger.read(accounts_version) == 0
        finally:
            await end(ledger, proxy)

    asyncio.run(go())


def test_a_worker_that_starts_while_another_host_holds_the_lock_serves_and_bills_later(
    server: tuple[PostgresServer, TcpProxy], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = server[0].uri()
    monkeypatch.chdir(tmp_path)  # where it keeps its bills

    async def go() -> None:
        first = PostgresLedger(uri)
        await first.settle(event_of(1))
        frozen = await asyncpg.connect(uri)
        await frozen.execute(LOCKED)
        model = JsonApp(completion(usage=usage_of(10, 5)))
        app = CostLedger(Closing(model), ledger=uri)
        asked = asyncio.create_task(post(app, CHAT))
        await asyncio.wait([asked], timeout=SETTLED_S + MARGIN_S)
        served = asked.done()
        if served:
            fresh = PostgresLedger(uri)
            await fails_in_time([fresh.read(accounts_version), fresh.settle(event_of(2))])
            await fresh.aclose()
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            assert await frozen.fetchval(waiting) <= 2  # of those alive: none waits on for nobody
        await frozen.execute("ROLLBACK")
        assert served
        assert (await asked).status == 200
        id_ = (await asked).headers["x-request-id"]
        billed = "SELECT count(*) FROM inf_ledger.request WHERE request_id = $1"
        async with asyncio.timeout(20):
            while not await frozen.fetchval(billed, id_):  # noqa: ASYNC110 - another task hands over
                await asyncio.sleep(0.01)
        await frozen.close()
        await first.aclose()
        await shut_down(app)

    asyncio.run(go())


def test_a_sink_that_is_let_go_while_the_database_is_silent_is_delivered_to_by_another(
    server: tuple[PostgresServer, TcpProxy],
) -> None:
    postgres, proxy = server
    straight, way = postgres.uris(proxy.port)

    async def go() -> None:
        ledger, other = PostgresLedger(way), PostgresLedger(straight)
        assert await asyncio.gather(*map(ledger.elect, ("mine", "theirs"))) == [True] * 2
        await asyncio.to_thread(proxy.partition)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):  # as a stack that ends waits no longer
                    await ledger.resign("mine")
            await asyncio.to_thread(proxy.heal)
            async with asyncio.timeout(2 * BOUND_S + MARGIN_S):
                while not await other.elect("mine"):  # noqa: ASYNC110 - a lock tells nobody
                    await asyncio.sleep(0.1)
        finally:
            await end(ledger, proxy)
            await other.aclose()

    asyncio.run(go())


def test_a_bill_that_was_kept_for_a_frozen_host_and_is_committed_all_the_same_is_one_debit(
    server: tuple[PostgresServer, TcpProxy], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = server[0].uri()
    monkeypatch.chdir(tmp_path)  # where it keeps its bills

    async def go() -> None:
        app = CostLedger(Closing(JsonApp(completion(usage=usage_of(10, 5)))), ledger=uri)
        before = await post(app, CHAT)
        frozen = await asyncpg.connect(uri)
        await frozen.execute(LOCKED)
        asked = [asyncio.create_task(post(app, CHAT)) for _ in range(3)]
        await asyncio.wait(asked, timeout=SETTLED_S + MARGIN_S)
        (spool,) = tmp_path.glob("*.spool")
        kept = spooled(spool)
        await frozen.execute("ROLLBACK")  # before they would have failed: they are committed, too
        answers = [before, *(await asyncio.gather(*asked))]
        ids = [answered.headers["x-request-id"] for answered in answers]
        assert sorted(kept) == sorted(ids[1:])
        async with asyncio.timeout(20):
            while spooled(spool):  # noqa: ASYNC110 - another task hands over
                await asyncio.sleep(0.01)
        await shut_down(app)
        for found in (
            await frozen.fetch("SELECT request_id FROM inf_ledger.request"),
            await frozen.fetch("SELECT id FROM inf_ledger.outbox"),
        ):
            assert sorted(row[0] for row in found) == sorted(ids)
        debits = await frozen.fetch("SELECT amount_nano FROM inf_ledger.posting")
        assert [row[0] for row in debits] == [15 * 10_000] * 4
        await frozen.close()

    asyncio.run(go())
