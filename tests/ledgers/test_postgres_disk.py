"""PostgreSQL that cannot write: new work is refused, nothing is half-written, and it heals."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from inf_middleware import Account, CostLedger
from inf_middleware.cli import main
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.postgres import PostgresLedger
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT
from tests.ledgers.conftest import Opened
from tests.ledgers.postgres_server import PostgresServer

ASKED = {**CHAT, "max_tokens": 10}


class Shop:
    """A model server whose ledger is in PostgreSQL; what it could not record is in `lost`."""

    def __init__(self, uri: str, spool: Path, **options: Any) -> None:
        self.uri = uri
        self.ledger = PostgresLedger(uri)
        self.ledger.spool_directory = spool
        self.model = JsonApp(completion(usage=usage_of(10, 5)))
        self.served: list[str] = []
        self.app: Any = CostLedger(
            self.model,
            ledger=self.ledger,
            accounts={"sk-one": Account("acme")},
            settle_timeout_s=0,
            **options,
        )

    def run(self, go: Callable[["Shop"], Awaitable[None]]) -> None:
        async def story() -> None:
            await LedgerBook(self.ledger).recharge("acme", "500", reference="start")
            try:
                await go(self)
            finally:
                await self.app._stack.worker._parts.billing.ledger.aclose()

        asyncio.run(story())

    async def post(self) -> int:
        self.app._stack.worker._parts.billing.health._next_probe = 0  # as if a second had gone
        answered = await post(self.app, ASKED, key="sk-one")
        if answered.status == 200:
            self.served.append(answered.headers["x-request-id"])
        else:
            assert answered.json["error"]["code"] == "ledger_unavailable"
            assert answered.headers["retry-after"] == "1"
        return answered.status

    async def read_only(self, is_on: bool) -> None:
        """Have all sessions of this database refuse to write from the next transaction on."""
        connection = await asyncpg.connect(self.uri)
        try:
            name = await connection.fetchval("SELECT current_database()")
            value = "on" if is_on else "off"
            await connection.execute("SET default_transaction_read_only = off")
            await connection.execute(
                f"ALTER DATABASE {name} SET default_transaction_read_only = {value}"
            )
            # Those that are open took their settings at their start.
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        finally:
            await connection.close()


@pytest.mark.parametrize("mode", ["postpaid", "prepaid"])
def test_a_server_that_is_read_only_refuses_new_work_and_heals_without_a_restart(
    mode: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    async def go(shop: Shop) -> None:
        assert await shop.post() == 200
        await shop.read_only(True)
        # The one that finds it out may have been worked on for nothing; those after it are not.
        assert [await shop.post() for _ in range(2)] == [503, 503]
        seen = len(shop.model.bodies)
        assert [await shop.post() for _ in range(3)] == [503] * 3
        assert len(shop.model.bodies) == seen
        await shop.read_only(False)
        statuses = [await shop.post() for _ in range(5)]
        assert statuses[-3:] == [200] * 3

    shop = Shop(postgres.uri(), tmp_path, mode=mode, on_ledger_error="refuse")
    shop.run(go)
    check(shop)


@pytest.mark.parametrize("mode", ["postpaid", "prepaid"])
def test_a_spool_keeps_the_bills_of_a_server_that_is_read_only(
    mode: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    async def go(shop: Shop) -> None:
        assert await shop.post() == 200
        await shop.read_only(True)
        assert [await shop.post() for _ in range(10)] == [200] * 10
        assert os.listdir(tmp_path)
        await shop.read_only(False)
        assert await shop.post() == 200

    shop = Shop(postgres.uri(), tmp_path, mode=mode, on_ledger_error="spool")
    shop.run(go)
    check(shop)


def check(shop: Shop) -> None:
    """Every answer that was given is billed, once, and nothing else is there."""
    opened = Opened(shop.uri)
    stored = opened.rows("SELECT request_id FROM request WHERE kind = 'usage'")
    assert sorted(row[0] for row in stored) == sorted(shop.served)
    assert opened.rows("SELECT count(*) FROM hold") == [(0,)]
    reconciled = CliRunner().invoke(main, ["ledger", "reconcile", "--ledger", shop.uri])
    assert reconciled.exit_code == 0, reconciled.output
