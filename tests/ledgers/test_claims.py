"""A client's key stands for one answer."""

import asyncio
import time
from typing import Any

import pytest

from inf_middleware.domain.books import Claim, Claimed
from inf_middleware.ledgers import claims, holds, reconcile
from inf_middleware.ledgers.book import LedgerBook
from tests.events import event_of
from tests.ledgers.conftest import Opened

NOW_NS = 2_200_000_000_000_000_000


def claim_of(request_id: str, *, fingerprint: str = "f", account: str = "acme") -> Claim:
    return Claim(account, "k1", fingerprint, request_id)


async def settle(book: LedgerBook, request_id: str, outcome: str) -> None:
    await book.ledger.settle(event_of(request_id=request_id, outcome=outcome, idempotency_key="k1"))


def test_of_fifty_equal_claims_at_once_one_wins(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        answers = await asyncio.gather(*(book.ledger.claim(claim_of(f"r{n}")) for n in range(50)))
        states = [answer.state for answer in answers]
        assert (states.count("claimed"), states.count("running")) == (1, 49)
        winner = f"r{states.index('claimed')}"
        assert {a.request_id for a in answers if a.state == "running"} == {winner}

    opened.run(go)


@pytest.mark.parametrize(
    ("outcome", "answer"),
    [
        ("complete", Claimed("complete", "r1")),
        ("client_disconnect", Claimed("claimed", "r1")),
        ("upstream_error", Claimed("claimed", "r1")),
        ("balance_exhausted", Claimed("claimed", "r1")),
    ],
)
def test_what_was_delivered_whole_stays_and_what_was_not_runs_again_linked(
    outcome: str, answer: Claimed, opened: Opened
) -> None:
    async def go(book: LedgerBook) -> None:
        assert await book.ledger.claim(claim_of("r1")) == Claimed("claimed", None)
        await settle(book, "r1", outcome)
        assert await book.ledger.claim(claim_of("r2")) == answer

    opened.run(go)


def test_another_body_is_told_and_another_account_is_another_key(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.ledger.claim(claim_of("r1"))
        assert await book.ledger.claim(claim_of("r2", fingerprint="g")) == Claimed("reused", "r1")
        await settle(book, "r1", "client_disconnect")
        assert await book.ledger.claim(claim_of("r2", fingerprint="g")) == Claimed("reused", "r1")
        other = await book.ledger.claim(claim_of("r3", account="umbrella"))
        assert other == Claimed("claimed", None)

    opened.run(go)


def test_what_is_not_served_gives_its_key_back(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.ledger.claim(claim_of("r1"))
        await book.ledger.void("r1")
        assert await book.ledger.claim(claim_of("r2")) == Claimed("claimed", None)
        await settle(book, "r2", "complete")
        assert (await book.ledger.claim(claim_of("r3"))).state == "complete"

    opened.run(go)


def test_a_retry_that_is_not_served_leaves_its_key_to_the_run_before_it(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        ledger = book.ledger
        await ledger.claim(claim_of("r1"))
        await settle(book, "r1", "client_disconnect")
        for retry in ("r2", "r3"):
            assert await ledger.claim(claim_of(retry)) == Claimed("claimed", "r1")
            assert await ledger.claim(claim_of("late")) == Claimed("running", retry)
            for _ in range(2):
                await ledger.void(retry)
            other = await ledger.claim(claim_of("other", fingerprint="g"))
            assert other == Claimed("reused", "r1")
        assert await ledger.claim(claim_of("r4")) == Claimed("claimed", "r1")
        await settle(book, "r4", "upstream_error")
        assert await ledger.claim(claim_of("r5")) == Claimed("claimed", "r4")
        await ledger.void("r5")
        assert await ledger.claim(claim_of("r6")) == Claimed("claimed", "r4")
        await settle(book, "r6", "complete")
        assert await ledger.claim(claim_of("r7")) == Claimed("complete", "r6")

    opened.run(go)


def test_a_key_whose_retries_are_not_served_stands_for_a_day_from_its_run(opened: Opened) -> None:
    day_ns = claims.KEPT_S * 10**9

    async def go(book: LedgerBook) -> None:
        def at(request_id: str, now_ns: int) -> Any:
            return book.ledger.transact(lambda: claims.claim(claim_of(request_id), "owner", now_ns))

        await at("r1", NOW_NS)
        await settle(book, "r1", "client_disconnect")
        assert await at("r2", NOW_NS + day_ns) == Claimed("claimed", "r1")
        await book.ledger.void("r2")
        assert await at("r3", NOW_NS + day_ns + 10**9) == Claimed("claimed", None)
        await settle(book, "r3", "client_disconnect")
        assert await at("r4", NOW_NS + 2 * day_ns) == Claimed("claimed", "r3")
        await book.ledger.transact(lambda: claims.forget(NOW_NS + 4 * day_ns))

    opened.run(go)
    assert opened.rows("SELECT count(*) FROM idempotency") == [(0,)]
    assert opened.rows("SELECT count(*) FROM reference") == [(0,)]


def test_a_bill_whose_caller_was_told_that_there_is_none_is_taken_back_once(
    opened: Opened,
) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        await book.ledger.claim(claim_of("r1"))
        await settle(book, "r1", "complete")  # the commit was made, and its answer was lost
        for _ in range(2):
            await book.ledger.void("r1")
        account = await book.account("acme")
        assert account is not None
        assert (account.balance_nano, account.recharged_nano) == (10**9, 10**9)
        # It is not answered, so that its key may be sent again.
        assert await book.ledger.claim(claim_of("r2")) == Claimed("claimed", "r1")

    opened.run(go)
    rows = opened.rows("SELECT kind, corrects, input_tokens FROM request ORDER BY seq")
    assert rows == [("recharge", None, 0), ("usage", None, 100), ("correction", "r1", 0)]
    assert all(check.ok for check in opened.run(lambda book: book.ledger.read(reconcile.checks)))


def test_of_a_bill_that_was_corrected_before_only_what_is_left_is_taken_back(
    opened: Opened,
) -> None:
    async def go(book: LedgerBook) -> int:
        await book.recharge("acme", "1", reference="r")
        await settle(book, "r1", "complete")
        await book.credit("r1", "0.0004")
        await book.ledger.void("r1")
        account = await book.account("acme")
        assert account is not None
        return account.balance_nano

    assert opened.run(go) == 10**9
    assert all(check.ok for check in opened.run(lambda book: book.ledger.read(reconcile.checks)))


def test_a_late_settlement_of_an_earlier_run_does_not_end_the_later_one(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.ledger.claim(claim_of("r1"))
        await settle(book, "r1", "client_disconnect")
        await book.ledger.claim(claim_of("r2"))
        await settle(book, "r1", "complete")
        assert await book.ledger.claim(claim_of("r3")) == Claimed("running", "r2")

    opened.run(go)


def test_what_a_dead_process_was_running_runs_again(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.ledger.claim(claim_of("r1"))

        def work() -> Any:
            return holds.beat(None, "", 2**60, time.time_ns(), "2026-11-25T00:00:00.000000Z")

        await book.ledger.transact(work)
        assert await book.ledger.claim(claim_of("r2")) == Claimed("claimed", "r1")

    opened.run(go)


def test_a_key_stands_for_a_day_and_is_forgotten(opened: Opened) -> None:
    day_ns = claims.KEPT_S * 10**9

    async def go(book: LedgerBook) -> None:
        def at(request_id: str, now_ns: int) -> Any:
            return book.ledger.transact(lambda: claims.claim(claim_of(request_id), "owner", now_ns))

        await at("r1", NOW_NS)
        await settle(book, "r1", "complete")
        assert (await at("r2", NOW_NS + day_ns)).state == "complete"
        await book.ledger.transact(lambda: claims.forget(NOW_NS + day_ns))
        assert (await at("r2", NOW_NS + day_ns)).state == "complete"
        assert await at("r2", NOW_NS + day_ns + 10**9) == Claimed("claimed", None)
        await book.ledger.transact(lambda: claims.forget(NOW_NS + 3 * day_ns))

    opened.run(go)
    assert opened.rows("SELECT count(*) FROM idempotency") == [(0,)]
