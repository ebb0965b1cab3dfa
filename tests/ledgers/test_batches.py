"""What is settled together: one writing per batch, in its order, each bill once."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from msgspec.structs import replace

from inf_middleware import BillingEvent
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.reconcile import checks
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.settling import settle_all
from inf_middleware.ledgers.steps import Ask, Record, Steps
from tests.events import event_of
from tests.ledgers.conftest import Opened


@pytest.mark.parametrize("count", [1, 100])
def test_a_batch_of_postpaid_calls_takes_two_steps_whatever_its_size(count: int) -> None:
    rows = [rows_of(event_of(number, account=f"a{number}")) for number in range(count)]
    steps = settle_all(rows)
    next(steps)
    written = steps.send([(False, False)])  # nothing is held, and no grant expires
    assert isinstance(written, Record)
    assert written.rows == rows
    with pytest.raises(StopIteration):
        steps.send([])


def settle(opened: Opened, *events: BillingEvent) -> None:
    async def go(book: LedgerBook) -> None:
        await asyncio.gather(*(book.ledger.settle(event) for event in events))
        wrong = [check for check in await book.ledger.read(checks) if not check.ok]
        assert wrong == []

    opened.run(go)


def balances(opened: Opened) -> dict[str, int]:
    return dict(opened.rows("SELECT account, balance_nano FROM balance"))


def test_a_batch_is_stored_in_its_order_and_adds_up_per_account(opened: Opened) -> None:
    # Neither the ids nor the accounts are in order.
    events = [
        event_of((number * 37) % 100, account=f"a{number * 7 % 5}", unpriced=number % 2 == 0)
        for number in range(100)
    ]
    free = replace(events[3], amount_nano="0")
    events[3] = free
    settle(opened, *events)
    stored = opened.rows("SELECT id, body FROM outbox ORDER BY seq")
    assert [(i, bytes(body)) for i, body in stored] == [(e.id, e.encode()) for e in events]
    owed: Counter[str] = Counter()
    for event in events:
        owed[event.account] -= int(event.amount_nano)
    assert balances(opened) == owed
    assert opened.rows("SELECT count(*) FROM posting") == [(99,)]
    assert opened.rows("SELECT count(*) FROM posting WHERE request_id = ?", free.id) == [(0,)]
    records: list[Any] = opened.rows("SELECT request_id, unpriced FROM request ORDER BY seq")
    assert records == [(e.id, int(e.unpriced)) for e in events]


def test_of_bills_of_one_call_the_first_counts_in_one_batch_as_in_several(opened: Opened) -> None:
    first, other = event_of(1), event_of(2)
    again = replace(first, amount_nano="77", account="somebody")
    settle(opened, first, again, other, first)
    settle(opened, again, other, replace(other, amount_nano="0"))
    assert opened.rows("SELECT request_id FROM request ORDER BY seq") == [(first.id,), (other.id,)]
    owed = int(first.amount_nano) + int(other.amount_nano)
    assert balances(opened) == {first.account: -owed}
    assert opened.rows("SELECT count(*), (SELECT count(*) FROM posting) FROM outbox") == [(2, 2)]


def test_a_failure_that_nobody_foresaw_is_told_and_the_ledger_goes_on(opened: Opened) -> None:
    def broken() -> Steps[None]:
        yield Ask("SELECT 1")
        raise ZeroDivisionError("unforeseen")

    async def go(book: LedgerBook) -> None:
        failing = asyncio.ensure_future(book.ledger.transact(broken))
        # In one batch with it: told as well, and handed over again by its caller.
        beside = asyncio.ensure_future(book.ledger.settle(event_of(1)))
        async with asyncio.timeout(30):
            told = await asyncio.gather(failing, beside, return_exceptions=True)
            assert isinstance(told[0], LedgerUnavailable)
            await book.ledger.settle(event_of(1))
            await book.ledger.settle(event_of(2))

    opened.run(go)
    assert opened.rows("SELECT count(*) FROM request") == [(2,)]
