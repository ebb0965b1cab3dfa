"""A task that is cancelled while its call is settled: what is under way comes to its end."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import CostLedger, TierLimiter
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.domain.limits import Admission
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.stores.memory import MemoryStore
from tests.apps import StreamApp, delta, event, read_all
from tests.driver import post
from tests.kit import ACCOUNTS, STREAM, House, records_of

PIECES = [event(delta("Hello.")), event("[DONE]")]


class Hesitant:
    """A ledger that fails at first, and then only goes on when it is told to."""

    def __init__(self, path: Path) -> None:
        self.real = SqliteLedger(path)
        self.asked = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.failures = 1

    async def settle(self, billing_event: Any) -> None:
        self.asked.set()
        await self.goes_on.wait()
        if self.failures:
            self.failures -= 1
            raise LedgerUnavailable("away")
        await self.real.settle(billing_event)

    async def aclose(self) -> None:
        await self.real.aclose()


class Forgetful(MemoryStore):
    """A store whose first settlement waits, and is lost where its caller is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def settle(self, admission: Admission, tokens: int | None) -> None:
        self.asked.set()
        await self.goes_on.wait()
        await super().settle(admission, tokens)


def test_a_shutdown_waits_for_calls_that_were_cancelled_to_be_billed(tmp_path: Path) -> None:
    async def go() -> None:
        served, goes_on = asyncio.Event(), asyncio.Event()

        async def model(scope: Any, receive: Any, send: Any) -> None:
            await read_all(receive)
            headers = [(b"content-type", b"text/event-stream")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": PIECES[0], "more_body": True})
            served.set()
            try:
                await asyncio.Event().wait()
            finally:  # as an app that frees what its model had in work
                await goes_on.wait()

        house = House(model, tmp_path)
        call = asyncio.create_task(post(house.app, STREAM, key="sk-one"))
        await served.wait()
        # As uvicorn, which cancels and does not wait, and ends its process after the lifespan.
        call.cancel()
        closing = asyncio.create_task(house.close())
        await asyncio.sleep(0.05)
        assert not closing.done()
        goes_on.set()
        await closing
        assert [record["outcome"] for record in house.records] == ["shutdown"]

    asyncio.run(go())


@pytest.mark.parametrize("times", [1, 3])
def test_a_call_that_is_cancelled_while_it_is_closed_is_billed_all_the_same(
    times: int, tmp_path: Path
) -> None:
    async def go() -> None:
        ledger = Hesitant(tmp_path / "ledger.db")
        # Without an end: it is settled when the app has returned.
        app = CostLedger(
            StreamApp(PIECES[:1], closes=False),
            ledger=ledger,
            accounts=ACCOUNTS,
            on_ledger_error="refuse",
        )
        task = asyncio.ensure_future(post(app, STREAM, key="sk-one"))
        await ledger.asked.wait()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        ledger.goes_on.set()
        await asyncio.wait([task])
        assert task.cancelled()
        await ledger.aclose()

    asyncio.run(go())
    (record,) = records_of(tmp_path / "ledger.db")
    assert record["output_tokens"] == 2


def test_a_settlement_that_is_cancelled_on_its_way_to_the_store_is_told_again() -> None:
    async def go() -> None:
        store = Forgetful()
        app = TierLimiter(StreamApp(PIECES), storage=store, accounts=ACCOUNTS)
        task = asyncio.ensure_future(post(app, STREAM, key="sk-one"))
        await store.asked.wait()
        task.cancel()
        await asyncio.sleep(0)
        store.goes_on.set()
        await asyncio.wait([task])
        assert store.in_progress("acme") == 0

    asyncio.run(go())
