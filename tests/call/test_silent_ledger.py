"""A ledger that neither takes a bill nor fails: an answer's end waits as long as was said."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import BillingEvent, CostLedger
from inf_middleware.domain.errors import LedgerUnavailable
from tests.apps import JsonApp, completion, usage_of
from tests.driver import Answered, post
from tests.kit import CHAT
from tests.ledgers.test_spool import spooled

# Of the answer's end beyond its bound: machines under the load of other tests differ.
MARGIN_S = 3.0


class Silent:
    """A ledger that fails some tries, and does not answer the next until it is told to."""

    def __init__(self, folder: Path, failing: int = 0) -> None:
        self.spool_directory = folder
        self.failing = failing
        self.speaks = asyncio.Event()
        self.taken: list[str] = []

    async def settle(self, event: BillingEvent) -> None:
        if self.failing:
            self.failing -= 1
            raise LedgerUnavailable("away")
        await self.speaks.wait()
        self.taken.append(event.id)

    async def aclose(self) -> None: ...


async def ask(ledger: Silent, within_s: float, **options: Any) -> Answered:
    app = CostLedger(JsonApp(completion(usage=usage_of(10, 5))), ledger=ledger, **options)
    asked = asyncio.create_task(post(app, CHAT))
    done, _ = await asyncio.wait([asked], timeout=within_s + MARGIN_S)
    if not done:
        ledger.speaks.set()  # else it would wait for ever, shielded
    assert done, "the answer's end waits for the ledger"
    return await asked


@pytest.mark.parametrize("failing", [0, 1], ids=["the first try", "a later one"])
@pytest.mark.parametrize("timeout_s", [0, 1.5])
def test_a_bill_without_an_answer_is_kept_in_time_and_handed_over_later(
    failing: int, timeout_s: float, tmp_path: Path
) -> None:
    async def go() -> None:
        ledger = Silent(tmp_path / "spool", failing)
        answer = await ask(ledger, max(timeout_s, 1), settle_timeout_s=timeout_s)
        assert answer.status == 200
        id_ = answer.headers["x-request-id"]
        assert spooled(ledger.spool_directory) == [id_]
        ledger.speaks.set()
        async with asyncio.timeout(20):
            while not ledger.taken:  # noqa: ASYNC110 - another task hands over
                await asyncio.sleep(0.01)
        assert set(ledger.taken) == {id_}

    asyncio.run(go())


def test_where_nothing_is_kept_who_waited_is_refused_in_time(tmp_path: Path) -> None:
    async def go() -> None:
        ledger = Silent(tmp_path / "spool")
        answer = await ask(ledger, 1, settle_timeout_s=1, on_ledger_error="refuse")
        assert answer.status == 503

    asyncio.run(go())
