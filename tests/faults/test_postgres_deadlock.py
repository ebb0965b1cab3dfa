"""PostgreSQL at odds with another session in the middle of a settlement: still one bill each."""

import asyncio
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from inf_middleware import Account, CostLedger
from inf_middleware.cli import main
from tests.apps import JsonApp, completion, usage_of
from tests.driver import Answered, post
from tests.faults.load import PATIENCE_S
from tests.kit import CHAT
from tests.ledgers.postgres_server import PostgresServer, serving_postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with serving_postgres() as server:
        yield server


async def bills(connection: Any) -> list[str]:
    rows = await connection.fetch(
        "SELECT request_id FROM inf_ledger.request WHERE kind = 'usage' ORDER BY seq"
    )
    return [row[0] for row in rows]


def shop(uri: str) -> Any:
    return CostLedger(
        JsonApp(completion(usage=usage_of(10, 5))),
        ledger=uri,
        accounts={"sk-one": Account("acme")},
        on_ledger_error="refuse",
        settle_timeout_s=PATIENCE_S,
    )


async def close(app: Any) -> None:
    await app._stack.worker._parts.billing.ledger.aclose()


def check(uri: str) -> None:
    reconciled = CliRunner().invoke(main, ["ledger", "reconcile", "--ledger", uri])
    assert reconciled.exit_code == 0, reconciled.output


def ids(answers: list[Answered]) -> list[str]:
    assert [answer.status for answer in answers] == [200] * len(answers)
    return [answer.headers["x-request-id"] for answer in answers]


def test_a_deadlock_with_a_session_of_the_operators_is_tried_again_and_is_one_bill(
    postgres: PostgresServer,
) -> None:
    uri = postgres.uri()

    async def go() -> None:
        app = shop(uri)
        answers = [await post(app, CHAT, key="sk-one")]
        aside, watching = await asyncpg.connect(uri), await asyncpg.connect(uri)
        await aside.execute("BEGIN")
        await aside.execute("SELECT * FROM inf_ledger.balance FOR UPDATE")
        asked = asyncio.create_task(post(app, CHAT, key="sk-one"))
        deadline = asyncio.get_running_loop().time() + PATIENCE_S
        # The settlement waits for the operator's row, and has the writers' lock, and ...
        waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while not await watching.fetchval(waits):
            assert asyncio.get_running_loop().time() < deadline
        # ... the operator's session for that: one of the two is ended by the server.
        held = await watching.fetchrow(
            "SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory' AND granted"
        )
        key = (held["classid"] << 32) | held["objid"]
        try:
            await aside.execute(f"SELECT pg_advisory_xact_lock({key}); ROLLBACK")
        except asyncpg.DeadlockDetectedError:
            await aside.execute("ROLLBACK")
        answers.append(await asked)
        assert await bills(watching) == ids(answers)
        for connection in (aside, watching):
            await connection.close()
        await close(app)

    asyncio.run(go())
    check(uri)
