"""A disk that is full or read-only: new work is refused, nothing is half-written, and it heals."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Account, CostLedger
from inf_middleware.ledgers import reconcile
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.apps import JsonApp, completion, usage_of
from tests.driver import Answered, post
from tests.kit import CHAT, reading, records_of
from tests.ledgers.small_disk import Limited, Mounted, small_disk

ASKED = {**CHAT, "max_tokens": 10}

# Far more calls than it takes to use up what a full disk has left in half-used pages.
CALLS_MAX = 500

# Calls that a model worked on for nothing: the one that found the disk full, and again after the
# ledger's log was given back to it.
LOST_MAX = 3


class Shop:
    """A model server whose ledger is on a small disk, and its spool too."""

    def __init__(self, disk: Mounted | Limited, **options: Any) -> None:
        self.disk = disk
        self.path = disk.place / "ledger.db"
        self.ledger = SqliteLedger(self.path)
        self.model = JsonApp(completion(usage=usage_of(10, 5)))
        self.options = options
        self.answers: list[Answered] = []

    def run(self, go: Callable[["Shop"], Awaitable[None]]) -> None:
        async def story() -> None:
            await LedgerBook(self.ledger).recharge("acme", "500", reference="start")
            try:
                await go(self)
            finally:
                await self.app._stack.worker._parts.billing.ledger.aclose()

        self.app: Any = CostLedger(
            self.model,
            ledger=self.ledger,
            accounts={"sk-one": Account("acme")},
            settle_timeout_s=0,
            **self.options,
        )
        asyncio.run(story())

    async def post(self) -> Answered:
        self.app._stack.worker._parts.billing.health._next_probe = 0  # as if a second had gone
        answered = await post(self.app, ASKED, key="sk-one")
        self.answers.append(answered)
        return answered

    async def until_refused(self) -> None:
        """Ask until new work is refused; few calls are lost before that is known."""
        lost = 0
        for _ in range(CALLS_MAX):
            seen = len(self.model.bodies)
            answered = await self.post()
            if answered.status == 200:
                continue
            assert answered.status == 503
            assert answered.json["error"]["code"] == "ledger_unavailable"
            assert answered.headers["retry-after"] == "1"
            if len(self.model.bodies) == seen:
                assert lost <= LOST_MAX
                return
            lost += 1
        raise AssertionError("the disk was never full")

    async def refused_unseen(self) -> None:
        """New work never reaches the model."""
        seen = len(self.model.bodies)
        assert [(await self.post()).status for _ in range(3)] == [503] * 3
        assert len(self.model.bodies) == seen

    def check(self) -> None:
        """Every answer that was given is billed, once, and nothing else is there."""
        given = [answer.headers["x-request-id"] for answer in self.answers if answer.status == 200]
        usage = [record for record in records_of(self.path) if record["kind"] == "usage"]
        assert sorted(record["request_id"] for record in usage) == sorted(given)
        with reading(self.path) as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            assert db.execute("SELECT count(*) FROM hold").fetchone() == (0,)
        asyncio.run(self.reconcile())

    async def reconcile(self) -> None:
        checks = await self.ledger.read(reconcile.checks)
        await self.ledger.aclose()
        assert [check for check in checks if not check.ok] == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Mounted | Limited]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


POLICIES = [
    pytest.param({"mode": mode, "on_ledger_error": policy}, id=f"{mode}-{policy}")
    for mode in ("postpaid", "prepaid")
    for policy in ("refuse", "spool")
]


@pytest.mark.parametrize("options", POLICIES)
def test_a_full_disk_refuses_new_work_and_heals_without_a_restart(
    options: Any, disk: Mounted | Limited
) -> None:
    async def go(shop: Shop) -> None:
        assert (await shop.post()).status == 200
        disk.fill()
        await shop.until_refused()
        await shop.refused_unseen()
        disk.empty()
        assert [(await shop.post()).status for _ in range(3)] == [200] * 3

    shop = Shop(disk, **options)
    shop.run(go)
    shop.check()


@pytest.mark.parametrize("options", POLICIES)
def test_a_disk_that_is_read_only_refuses_new_work_and_heals_without_a_restart(
    options: Any, disk: Mounted | Limited
) -> None:
    async def go(shop: Shop) -> None:
        assert (await shop.post()).status == 200
        await shop.ledger.aclose()  # no disk becomes read-only under a file that is being written
        disk.read_only()
        await shop.until_refused()
        await shop.refused_unseen()
        disk.writable()
        assert [(await shop.post()).status for _ in range(3)] == [200] * 3

    shop = Shop(disk, **options)
    shop.run(go)
    shop.check()


@pytest.mark.parametrize("mode", ["postpaid", "prepaid"])
def test_a_spool_on_another_disk_keeps_the_bills_of_a_full_one(
    mode: str, disk: Mounted | Limited, tmp_path: Path
) -> None:
    async def go(shop: Shop) -> None:
        assert (await shop.post()).status == 200
        disk.fill()
        for _ in range(50):
            assert (await shop.post()).status == 200
        assert list((tmp_path / "spool").glob("*.jsonl"))
        disk.empty()
        assert (await shop.post()).status == 200

    shop = Shop(disk, mode=mode, on_ledger_error="spool")
    shop.ledger.spool_directory = tmp_path / "spool"
    shop.run(go)
    shop.check()
    assert len(shop.answers) == 52
