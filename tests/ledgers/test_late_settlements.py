"""A call that was taken for lost, and ended at its checkpoint, is paid once and whole in the end.

Its process was cut off or stood still, and served its client: what it says later is what was used.
"""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from inf_middleware import BillingEvent, Usage
from inf_middleware.domain.books import Claim
from inf_middleware.domain.money import decimal_string
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.continuing import continuation_of
from inf_middleware.ledgers.reconcile import check_events, checks
from inf_middleware.ledgers.spool import SpoolingLedger
from inf_middleware.ledgers.uris import ledger_of
from tests.events import event_of
from tests.ledgers.conftest import Opened
from tests.ledgers.test_holds import FEN, bill, reap, standing

_RECORDS = (
    "SELECT request_id, kind, outcome, input_tokens, amount_nano, corrects FROM request"
    " WHERE kind IN ('usage', 'correction') ORDER BY seq"
)
CALL = event_of(0).id


def lost(tokens: int = 0) -> BillingEvent:
    return bill(0, tokens, request_id=CALL, outcome="worker_lost")


async def end_as_lost(book: LedgerBook, checkpoint: BillingEvent) -> None:
    await book.recharge("acme", "1", reference="r")
    await book.ledger.hold(checkpoint, FEN, 0)
    assert await reap(book) == 1


async def in_order(book: LedgerBook) -> None:
    """Every nano is explained."""
    found = await book.ledger.read(checks)
    assert [check for check in found if not check.ok] == []
    _, wrong = await book.ledger.read(lambda: check_events(0))
    assert wrong == []


@pytest.mark.parametrize("before", [0, 700])
def test_what_a_call_used_beyond_its_checkpoint_is_a_record_of_its_own(
    before: int, opened: Opened
) -> None:
    async def go(book: LedgerBook) -> None:
        await end_as_lost(book, lost(before))
        for _ in range(2):  # it is told again, and taken once
            await asyncio.gather(*[book.ledger.settle(bill(0, 1000, request_id=CALL))] * 2)
        assert await standing(book) == (99 * FEN, 0)
        await in_order(book)

    opened.run(go)
    rest = 1000 - before
    assert opened.rows(_RECORDS) == [
        (CALL, "usage", "worker_lost", before, before * FEN // 1000, None),
        (continuation_of(CALL), "usage", "complete", rest, rest * FEN // 1000, None),
    ]
    (body,) = opened.rows("SELECT body FROM outbox WHERE id = ?", continuation_of(CALL))[0]
    assert BillingEvent.decode(bytes(body)).metadata["continues"] == CALL


def test_a_bill_that_tells_no_more_than_the_checkpoint_writes_nothing(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await end_as_lost(book, lost(700))
        await book.ledger.settle(bill(0, 700, request_id=CALL))
        await book.ledger.settle(lost(900))  # a checkpoint is no bill
        assert await standing(book) == (100 * FEN - 7 * FEN // 10, 0)

    opened.run(go)
    assert len(opened.rows(_RECORDS)) == 1


@pytest.mark.parametrize("usage", [Usage(500, 100), Usage(0, 1000), Usage(0, 0)])
def test_of_a_bill_with_other_parts_than_the_checkpoint_that_is_taken_back(
    usage: Usage, opened: Opened
) -> None:
    event = event_of(0, usage=usage, request_id=CALL)

    async def go(book: LedgerBook) -> None:
        await end_as_lost(book, lost(700))
        for _ in range(2):
            await book.ledger.settle(event)
        assert await standing(book) == (100 * FEN - int(event.amount_nano), 0)
        await in_order(book)

    opened.run(go)
    ((_, kind, _, _, taken_back, corrects), (_, _, _, *whole)) = opened.rows(_RECORDS)[1:]
    assert whole == [usage.input_tokens, int(event.amount_nano), None]
    assert (kind, taken_back, corrects) == ("correction", 7 * FEN // 10, CALL)


@pytest.mark.parametrize("credit", [0, FEN // 2])
def test_what_a_late_bill_takes_beyond_the_balance_is_shown_by_it(
    credit: int, opened: Opened
) -> None:
    calls = {name: [bill(0, n, request_id=name) for n in (400, 1000)] for name in ("a", "b", "c")}
    cached = event_of(0, usage=Usage(0, 1000), request_id="c")  # 2 fen, and no input

    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        for checkpoint, _ in calls.values():
            at = replace(checkpoint, outcome="worker_lost")
            assert await book.ledger.hold(at, FEN, credit) is None
        assert await reap(book) == len(calls)
        await book.withdraw("acme", decimal_string(98 * FEN + credit))
        late = [calls["a"][1], calls["b"][1], calls["a"][1], cached]
        await asyncio.gather(*map(book.ledger.settle, late))
        assert await standing(book) == (-2 * FEN - credit, 0)
        await in_order(book)

    opened.run(go)
    # There are 0.8 fen: the first takes 0.6, the second 0.4 beyond; 0.4 come back to pay for that,
    # and all of the third is beyond.
    shown = opened.rows(
        "SELECT amount_nano, overdrawn_nano FROM request WHERE kind = 'usage' ORDER BY seq"
    )
    assert shown[len(calls) :] == [
        (6 * FEN // 10, 0),
        (6 * FEN // 10, 4 * FEN // 10),
        (2 * FEN, 2 * FEN),
    ]


def test_a_late_bill_whose_caller_was_told_that_there_is_none_is_taken_back(
    opened: Opened,
) -> None:
    async def go(book: LedgerBook) -> None:
        await end_as_lost(book, lost(700))
        await book.ledger.settle(bill(0, 1000, request_id=CALL))
        for _ in range(2):
            await book.ledger.void(CALL)
        assert await standing(book) == (100 * FEN, 0)
        await in_order(book)

    opened.run(go)


def test_a_late_bill_is_paid_by_the_grant_first_and_completes_its_key(opened: Opened) -> None:
    now = datetime.fromtimestamp(opened.now_ns / 1e9, UTC)

    async def go(book: LedgerBook) -> None:
        await book.grant("acme", "0.05", expires=now + timedelta(days=1))
        await book.ledger.claim(Claim("acme", "k", "print", CALL))
        await end_as_lost(book, lost(700))
        await book.ledger.settle(bill(0, 1000, request_id=CALL, idempotency_key="k"))
        assert await standing(book) == (104 * FEN, 0)

    opened.run(go)
    assert opened.rows("SELECT left_nano FROM lot") == [(4 * FEN,)]
    assert opened.rows("SELECT state FROM idempotency") == [("complete",)]


async def handed_over(ledger: LedgerBase, directory: Path) -> None:
    """Hand over what was kept."""
    spool = SpoolingLedger(ledger, directory)
    await spool.start()
    async with asyncio.timeout(10):
        while [*directory.glob("*.jsonl")]:  # noqa: ASYNC110, ASYNC240 - of a thread, of a test
            await asyncio.sleep(0.01)
    await spool.stop()


def test_kept_bills_of_calls_that_were_ended_meanwhile_are_paid_whole(
    opened: Opened, tmp_path: Path
) -> None:
    ids = [event_of(n).id for n in range(20)]
    kept = [bill(n, 1000, request_id=one).encode() for n, one in enumerate(ids)]

    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        gone = ledger_of(opened.uri)
        for n, one in enumerate(ids):
            await gone.hold(bill(n, 500, request_id=one, outcome="worker_lost"), FEN, 0)
        await gone.aclose()
        (tmp_path / "of-a-process-that-is-gone.jsonl").write_bytes(b"\n".join([*kept, b""]))
        assert await reap(book) == len(ids)
        await handed_over(book.ledger, tmp_path)
        assert await standing(book) == (80 * FEN, 0)
        await in_order(book)

    opened.run(go)


def test_a_settlement_of_a_call_that_goes_on_asks_for_no_earlier_record(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError

    monkeypatch.setattr("inf_middleware.ledgers.settling.continued", refuse)
    monkeypatch.setattr("inf_middleware.ledgers.postgres_steps._LOST", "no statement")

    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        await book.ledger.hold(lost(), FEN, 0)
        settled = [event_of(n, usage=Usage(1000, 0), request_id=f"{CALL}{n}") for n in range(2)]
        await asyncio.gather(*map(book.ledger.settle, [bill(0, 1000, request_id=CALL), *settled]))
        assert await standing(book) == (97 * FEN, 0)
        await book.ledger.settle(bill(4, 1000))

    opened.run(go)
