"""Money held for running calls: never more than is there, and never for longer than they live."""

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from inf_middleware import BillingEvent, Usage
from inf_middleware.domain.books import Claim
from inf_middleware.ledgers import holds
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.steps import Ask
from inf_middleware.ledgers.uris import ledger_of
from tests.events import event_of
from tests.ledgers.conftest import Opened

NOTHING = Usage(0, 0)
FEN = 10_000_000  # ¥0.01: what 1,000 tokens of input cost in these tests

# A clock of processes beyond all leases, whatever the host's says.
LATER_MS = 2**60


def bill(number: int, tokens: int, **fields: Any) -> BillingEvent:
    return event_of(number, usage=Usage(tokens, 0), **fields)


async def reap(book: LedgerBook) -> int:
    def work() -> Any:
        return holds.beat(None, "", LATER_MS, 0, "2026-11-25T00:00:00.000000Z")

    ended: int = await book.ledger.transact(work)
    return ended


async def standing(book: LedgerBook, account: str = "acme") -> tuple[int, int]:
    record = await book.account(account)
    assert record is not None
    return record.balance_nano, record.held_nano


def test_of_a_hundred_racing_calls_on_a_balance_for_ten_exactly_ten_are_held(
    opened: Opened,
) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "0.10", reference="r")
        answers = await asyncio.gather(*(book.ledger.hold(bill(n, 0), FEN, 0) for n in range(100)))
        assert answers.count(None) == 10
        assert set(answers) == {None, 0}
        assert await standing(book) == (10 * FEN, 10 * FEN)

    opened.run(go)


def test_what_does_not_cover_says_what_is_there_and_takes_nothing(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        assert await book.ledger.hold(bill(1, 0), FEN, 0) == 0
        await book.recharge("acme", "0.025", reference="r")
        assert await book.ledger.hold(bill(2, 0), 2 * FEN, 0) is None
        assert await book.ledger.hold(bill(3, 0), FEN, 0) == FEN // 2
        assert await standing(book) == (25 * FEN // 10, 2 * FEN)

    opened.run(go)


def test_what_is_to_be_spared_is_no_part_of_what_is_available(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "0.025", reference="r")
        assert await book.ledger.hold(bill(1, 0), FEN, FEN, 5 * FEN // 2) is None
        assert await book.ledger.hold(bill(2, 0), FEN, FEN, 2 * FEN) == FEN // 2
        assert await book.ledger.hold(bill(3, 0), FEN, FEN) is None
        assert await standing(book) == (5 * FEN // 2, 2 * FEN)

    opened.run(go)


def test_a_credit_limit_is_how_far_below_nothing_a_balance_may_go(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        assert await book.ledger.hold(bill(1, 0), FEN, FEN) is None
        assert await book.ledger.hold(bill(2, 0), 1, FEN) == 0

    opened.run(go)


def test_a_settlement_ends_the_hold_and_takes_what_was_used(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        await book.ledger.hold(bill(0, 0, request_id="a"), 3 * FEN, 0)
        await book.ledger.settle(bill(0, 1000, request_id="a"))
        assert await standing(book) == (99 * FEN, 0)
        await book.ledger.settle(bill(0, 1000, request_id="a"))
        assert await standing(book) == (99 * FEN, 0)

    opened.run(go)
    assert opened.rows("SELECT overdrawn_nano FROM request WHERE kind = 'usage'") == [(0,)]


def test_what_exceeds_the_balance_is_taken_and_shown_by_the_call_that_did_it(
    opened: Opened,
) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "0.02", reference="r")
        for name in ("a", "b"):
            assert await book.ledger.hold(bill(0, 0, request_id=name), FEN, 0) is None
        await asyncio.gather(
            book.ledger.settle(bill(0, 1250, request_id="a")),  # a quarter more than was held
            book.ledger.settle(bill(0, 1000, request_id="b")),
        )
        assert await standing(book) == (-FEN // 4, 0)

    opened.run(go)
    assert opened.rows(
        "SELECT request_id, overdrawn_nano FROM request WHERE kind = 'usage' ORDER BY request_id"
    ) == [("a", FEN // 4), ("b", 0)]
    (body,) = opened.rows("SELECT body FROM outbox WHERE id = 'a'")[0]
    assert BillingEvent.decode(bytes(body)).overdrawn_nano == str(FEN // 4)


def test_a_hold_is_extended_or_says_what_is_there_and_its_checkpoint_moves(
    opened: Opened,
) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "0.03", reference="r")
        await book.ledger.hold(bill(0, 0, request_id="a"), FEN, 0)
        assert await book.ledger.extend(bill(0, 500, request_id="a"), FEN) is None
        assert await standing(book) == (3 * FEN, 2 * FEN)
        assert await book.ledger.extend(bill(0, 1800, request_id="a"), 2 * FEN) == FEN
        assert await standing(book) == (3 * FEN, 2 * FEN)
        assert await reap(book) == 1
        assert await standing(book) == (3 * FEN - 18 * FEN // 10, 0)

    opened.run(go)


def test_a_voided_hold_leaves_nothing_and_a_second_time_changes_nothing(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "0.03", reference="r")
        await book.ledger.hold(bill(0, 0, request_id="a"), FEN, 0)
        await book.ledger.void("a")
        await book.ledger.void("a")
        assert await standing(book) == (3 * FEN, 0)

    opened.run(go)
    assert opened.rows("SELECT count(*) FROM request WHERE kind = 'usage'") == [(0,)]


def test_what_a_dead_process_held_ends_once_at_its_checkpoint(opened: Opened) -> None:
    checkpoint = bill(0, 700, request_id="a", outcome="worker_lost")

    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        await book.ledger.hold(bill(0, 0, request_id="a"), FEN, 0)
        await book.ledger.extend(checkpoint, FEN)
        await book.ledger.hold(bill(1, 0, request_id="never-began"), FEN, 0)
        assert await reap(book) == 2
        assert await reap(book) == 0
        # It may only be paused: nothing more is held for it.
        assert await book.ledger.extend(bill(0, 900, request_id="a"), FEN) == 0
        assert await standing(book) == (100 * FEN - 7 * FEN // 10, 0)

    opened.run(go)
    rows = opened.rows(
        "SELECT request_id, outcome, amount_nano, settled_at FROM request WHERE kind = 'usage'"
        " ORDER BY request_id"
    )
    assert rows[0] == ("a", "worker_lost", 7 * FEN // 10, "2026-11-25T00:00:00.000000Z")
    assert rows[1][2] == 0
    assert opened.rows("SELECT count(*) FROM hold") == [(0,)]
    assert opened.rows("SELECT count(*) FROM process") == [(0,)]


def test_what_a_process_holds_first_is_not_taken_for_a_dead_ones_by_others(opened: Opened) -> None:
    def beats() -> Any:
        return (yield Ask("SELECT beat_ms FROM process"))

    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        event, claimed = bill(1, 0), Claim("acme", "k", "print", "other")
        for first in (lambda new: new.hold(event, FEN, 0), lambda new: new.claim(claimed)):
            new = ledger_of(opened.uri)  # nothing was asked of it yet, the server's time neither
            holding = asyncio.create_task(first(new))
            await asyncio.sleep(0)  # it is handed over ...
            ((beat_ms,),) = await new.transact(beats)  # and this with it, before its heart beats
            await holding
            await book.ledger.transact(beats)
            now_ms = book.ledger._heart.now_ms()  # of another process
            assert beat_ms > now_ms - holds.LEASE_S * 1000
            await new.aclose()
            await book.ledger.transact(forget)

    def forget() -> Any:
        yield Ask("DELETE FROM process")

    opened.run(go)


def test_a_process_that_beats_keeps_what_it_holds(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        await book.ledger.hold(bill(0, 0, request_id="a"), FEN, 0)
        ((beat_ms,),) = [
            (row[0],) for row in await book.ledger.read(lambda: _ask("SELECT beat_ms FROM process"))
        ]
        now = "2026-11-25T00:00:00.000000Z"
        lease_ms = round(holds.LEASE_S * 1000)
        for at, ended in ((beat_ms + lease_ms, 0), (beat_ms + lease_ms + 1, 1)):
            reaped = await book.ledger.transact(
                lambda at=at: holds.beat(None, "", at, 0, now)  # type: ignore[misc]
            )
            assert reaped == ended

    opened.run(go)


def test_settled_together_each_call_is_overdrawn_as_if_it_was_settled_alone(
    opened: Opened,
) -> None:
    # Held and used, in fen: all of the balance of 4 is held by turns, and 7 are used.
    calls = ((1, 3), (2, 1), (1, 2), (0, 1))
    runs = list(enumerate(itertools.permutations(calls)))

    def bills_of(way: str, run: int, order: Any) -> list[BillingEvent]:
        return [
            bill(number, 1000 * used, request_id=f"{way} {run} {number}", account=f"{way} {run}")
            for number, (_, used) in enumerate(order)
        ]

    async def go(book: LedgerBook) -> None:
        for run, order in runs:
            for way in ("alone", "together"):
                await book.recharge(f"{way} {run}", "0.04", reference=f"{way} {run}")
                bills = bills_of(way, run, order)
                for event, (held, _) in zip(bills, order, strict=True):
                    if held:
                        assert await book.ledger.hold(event, held * FEN, 0) is None
                # The first is told twice, which takes nothing.
                for together in ([bills[0], *bills],) if way == "together" else zip(bills):
                    await asyncio.gather(*map(book.ledger.settle, together))
                assert await standing(book, f"{way} {run}") == (-3 * FEN, 0)

    opened.run(go)
    found = opened.rows("SELECT account, request_id, overdrawn_nano FROM request")
    overdrawn = {request_id: nano for _, request_id, nano in found}
    for run, order in runs:
        of_run = [overdrawn[f"alone {run} {number}"] for number in range(len(order))]
        assert [overdrawn[f"together {run} {number}"] for number in range(len(order))] == of_run
        assert sum(of_run) > 0


def test_a_hold_says_that_its_process_lives_once_in_a_beat(opened: Opened) -> None:
    beat_ms = round(holds.BEAT_S * 1000)
    first_ms = LATER_MS - 10 * beat_ms
    moments = (
        (0, 0),
        (1, 0),  # it was said just now
        (beat_ms - 1, 0),
        (beat_ms, beat_ms),
        (beat_ms + 1, beat_ms),
        (beat_ms - 5, beat_ms - 5),  # a server's clock went back
    )

    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        for number, (after_ms, told_ms) in enumerate(moments):
            now_ms = first_ms + after_ms
            held = await book.ledger.transact(
                lambda number=number, now_ms=now_ms: holds.hold(  # type: ignore[misc]
                    bill(number, 0), FEN, 0, "of this test", now_ms
                )
            )
            assert held is None
            beats = await book.ledger.read(lambda: _ask("SELECT id, beat_ms FROM process"))
            assert [tuple(row) for row in beats] == [("of this test", first_ms + told_ms)]

    opened.run(go)


def _ask(sql: str) -> Any:
    return (yield Ask(sql))


def test_a_grant_that_expires_leaves_a_running_call_what_it_holds(opened: Opened) -> None:
    now = datetime.fromtimestamp(opened.now_ns / 1e9, UTC)

    async def go(book: LedgerBook) -> None:
        await book.grant("acme", "0.05", expires=now + timedelta(seconds=1))
        await book.ledger.hold(bill(0, 0, request_id="a"), 2 * FEN, 0)
        opened.now_ns += 2 * 10**9
        await book.expire_grants()
        assert await standing(book) == (2 * FEN, 2 * FEN)
        await book.ledger.settle(bill(0, 1500, request_id="a"))
        await book.expire_grants()
        assert await standing(book) == (0, 0)

    opened.run(go)


@pytest.mark.parametrize(
    ("recharged", "later_grant", "left"), [(None, None, 0), ("1", None, 1), (None, "1", 1)]
)
def test_a_call_pays_with_the_grant_it_holds_of_whatever_else_its_account_has(
    recharged: str | None, later_grant: str | None, left: int, opened: Opened
) -> None:
    now = datetime.fromtimestamp(opened.now_ns / 1e9, UTC)

    async def go(book: LedgerBook) -> None:
        if recharged is not None:
            await book.recharge("acme", recharged, reference="r")
        if later_grant is not None:
            await book.grant("acme", later_grant, expires=now + timedelta(days=1))
        for amount in ("0.03", "0.04"):
            await book.grant("acme", amount, expires=now + timedelta(seconds=1))
        await book.ledger.hold(bill(0, 0, request_id="a"), 5 * FEN, 0)
        opened.now_ns += 2 * 10**9
        await book.expire_grants()  # of 0.07 it takes what is not held
        assert await standing(book) == (100 * left * FEN + 5 * FEN, 5 * FEN)
        await book.ledger.settle(bill(0, 4000, request_id="a"))
        await book.expire_grants()
        assert await standing(book) == (100 * left * FEN, 0)

    opened.run(go)


def test_money_is_held_and_settled_together_in_one_commit(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "1", reference="r")
        await asyncio.gather(
            *(book.ledger.hold(bill(n, 0, request_id=f"h{n}"), FEN, 0) for n in range(20)),
            *(book.ledger.settle(bill(n, 10, request_id=f"p{n}")) for n in range(20)),
        )
        await asyncio.gather(
            *(book.ledger.settle(bill(n, 10, request_id=f"h{n}")) for n in range(20)),
            *(book.ledger.settle(bill(n, 10, request_id=f"q{n}")) for n in range(20)),
        )
        assert await standing(book) == (100 * FEN - 60 * FEN // 100, 0)

    opened.run(go)
