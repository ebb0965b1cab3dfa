"""What an operator does to a ledger: accounts, keys, and money that moves once."""

import asyncio
import hashlib
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_middleware import BillingEvent, ConfigError, Usage, open_ledger
from inf_middleware.domain.books import Receipt
from inf_middleware.domain.errors import BookingRefused
from inf_middleware.ledgers import lots
from inf_middleware.ledgers.book import LedgerBook
from tests.events import event_of
from tests.ledgers.conftest import Opened

YUAN = 10**9


def events(opened: Opened) -> list[BillingEvent]:
    rows = opened.rows("SELECT body FROM outbox ORDER BY seq")
    return [BillingEvent.decode(bytes(row[0])) for row in rows]


def postings(opened: Opened) -> list[tuple[str, str, int]]:
    return [
        (debit, credit, amount)
        for debit, credit, amount in opened.rows(
            "SELECT debit, credit, amount_nano FROM posting ORDER BY seq"
        )
    ]


def test_open_ledger_makes_the_file_and_recharges_as_the_readme_says(opened: Opened) -> None:
    async def go() -> Receipt:
        ledger = await open_ledger(opened.uri)
        receipt = await ledger.recharge("acme", "500.00", reference="alipay:8812")
        await ledger.aclose()
        return receipt

    receipt = asyncio.run(go())
    assert (receipt.account.tier, receipt.account.balance_nano) == ("Tier1", 500 * YUAN)


def test_each_movement_is_a_record_a_posting_and_an_event(opened: Opened) -> None:
    bill = event_of(usage=Usage(1000, 0))  # ¥0.01

    async def go(book: LedgerBook) -> list[str]:
        await book.ledger.settle(bill)
        recharge = await book.recharge("acme", "500", reference="r1", note="by hand")
        grant = await book.grant("acme", "5")
        credit = await book.credit(bill.id, "0.004")
        withdrawal = await book.withdraw("acme", "2")
        reversal = await book.reverse("r1")
        return [m.request_id for m in (recharge, grant, credit, withdrawal, reversal)]

    ids = opened.run(go)
    assert postings(opened) == [
        ("account:acme", "revenue:usage", 10_000_000),
        ("cash:recharge", "account:acme", 500 * YUAN),
        ("expense:grant", "account:acme", 5 * YUAN),
        ("revenue:usage", "account:acme", 4_000_000),
        ("account:acme", "cash:withdrawal", 2 * YUAN),
        ("account:acme", "cash:recharge", 500 * YUAN),
    ]
    told = events(opened)
    assert [event.id for event in told] == [bill.id, *ids]
    assert [(event.kind, event.corrects, event.amount, event.tier) for event in told[1:]] == [
        ("recharge", None, "500", "Tier1"),
        ("grant", None, "5", "Tier1"),
        ("correction", bill.id, "0.004", "Tier1"),
        ("withdrawal", None, "2", "Tier1"),
        ("correction", ids[0], "500", "Free"),
    ]
    assert told[1].metadata == {"operation": "recharge", "reference": "r1", "note": "by hand"}
    shown = opened.rows("SELECT request_id, kind FROM inf_usage")
    assert set(shown) == {(event.id, event.kind) for event in told}


def test_balance_and_recharges_are_the_sums_of_the_postings(opened: Opened) -> None:
    async def go(book: LedgerBook) -> Any:
        await book.recharge("acme", "500", reference="r1")
        await book.grant("acme", "7")
        await book.ledger.settle(event_of(usage=Usage(1000, 0)))
        await book.withdraw("acme", "100")
        return await book.account("acme")

    account = opened.run(go)
    assert account.balance_nano == 407 * YUAN - 10_000_000
    assert account.recharged_nano == 500 * YUAN
    assert account.tier == "Tier1"


@pytest.mark.parametrize(
    ("recharged", "tier"),
    [("0.01", "Free"), ("499.99", "Free"), ("500", "Tier1"), ("100000", "Tier5")],
)
def test_the_level_follows_the_cumulative_recharge(
    recharged: str, tier: str, opened: Opened
) -> None:
    async def go(book: LedgerBook) -> Any:
        return (await book.recharge("acme", recharged, reference="r")).account.tier

    assert opened.run(go) == tier


def test_the_level_does_not_fall_when_money_is_spent_or_withdrawn_but_when_reversed(
    opened: Opened,
) -> None:
    async def go(book: LedgerBook) -> list[str]:
        first = await book.recharge("acme", "500", reference="r1")
        second = await book.recharge("acme", "2500", reference="r2")
        spent = await book.withdraw("acme", "3000")
        back = await book.reverse(second.request_id)
        return [receipt.account.tier for receipt in (first, second, spent, back)]

    assert opened.run(go) == ["Tier1", "Tier2", "Tier2", "Tier1"]


def test_a_reference_is_booked_once_and_never_for_something_else(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        first = await book.recharge("acme", "500", reference="r1")
        again = await book.recharge("acme", Decimal("500.00"), reference="r1")
        assert (again.request_id, again.repeated) == (first.request_id, True)
        assert again.account.balance_nano == 500 * YUAN
        for account, amount in (("acme", "501"), ("umbrella", "500")):
            with pytest.raises(BookingRefused, match="stands for another recharge"):
                await book.recharge(account, amount, reference="r1")
        await book.withdraw("acme", "500", reference="r1")  # another kind, another book

    opened.run(go)
    assert len(postings(opened)) == 2


def test_fifty_equal_recharges_at_once_are_one(opened: Opened) -> None:
    async def go(book: LedgerBook) -> Any:
        return await asyncio.gather(
            *(book.recharge("acme", "10", reference="same") for _ in range(50))
        )

    receipts = opened.run(go)
    assert len({receipt.request_id for receipt in receipts}) == 1
    assert sum(not receipt.repeated for receipt in receipts) == 1
    assert len(postings(opened)) == 1


def test_a_refused_movement_does_not_disturb_its_neighbours(opened: Opened) -> None:
    async def go(book: LedgerBook) -> Any:
        return await asyncio.gather(
            book.recharge("acme", "10", reference="a"),
            book.withdraw("acme", "11"),
            book.recharge("acme", "20", reference="a"),
            book.recharge("acme", "20", reference="b"),
            return_exceptions=True,
        )

    kinds = [type(result).__name__ for result in opened.run(go)]
    assert kinds == ["Receipt", "BookingRefused", "AlreadyExists", "Receipt"]
    assert opened.rows("SELECT balance_nano FROM balance") == [(30 * YUAN,)]


@pytest.mark.parametrize("amount", [0.5, True, "-1", "nan", "0.0000000001", "1e10", "", None, b"1"])
def test_what_is_no_exact_amount_is_refused_and_nothing_booked(amount: Any, opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        with pytest.raises((ConfigError, BookingRefused)):
            await book.recharge("acme", amount, reference="r")

    opened.run(go)
    assert postings(opened) == []


def test_an_amount_of_nothing_is_refused(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        with pytest.raises(BookingRefused, match="is 0"):
            await book.recharge("acme", "0", reference="r")

    opened.run(go)


def test_a_balance_never_leaves_64_bits(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "9223372036", reference="r1")
        with pytest.raises(BookingRefused, match="64 bits"):
            await book.recharge("acme", "9223372036", reference="r2")

    opened.run(go)


def test_more_than_is_there_is_not_withdrawn(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "10", reference="r")
        with pytest.raises(BookingRefused, match=r"has 10 CNY to withdraw, not 10\.01"):
            await book.withdraw("acme", "10.01")
        with pytest.raises(BookingRefused, match="has 0 CNY"):
            await book.withdraw("nobody", "1")

    opened.run(go)


def test_a_bill_is_credited_up_to_what_it_was_and_a_recharge_reversed_once(
    opened: Opened,
) -> None:
    bill = event_of(usage=Usage(1000, 0))

    async def go(book: LedgerBook) -> None:
        await book.ledger.settle(bill)
        assert (await book.credit(bill.id, "0.004")).amount_nano == 4_000_000
        assert (await book.credit(bill.id)).amount_nano == 6_000_000
        with pytest.raises(BookingRefused, match="0 can still be taken back"):
            await book.credit(bill.id, "0.001")
        with pytest.raises(BookingRefused, match="there is no request"):
            await book.credit("no-such-id")
        await book.recharge("acme", "5", reference="r1")
        first = await book.reverse("r1")
        again = await book.reverse("r1")
        assert (again.repeated, again.request_id) == (True, first.request_id)
        with pytest.raises(BookingRefused, match="there is no recharge"):
            await book.reverse(bill.id)
        assert first.account.balance_nano == 0

    opened.run(go)


def test_a_credit_of_all_is_idempotent_by_its_reference(opened: Opened) -> None:
    bill = event_of(usage=Usage(1000, 0))

    async def go(book: LedgerBook) -> None:
        await book.ledger.settle(bill)
        first = await book.credit(bill.id, reference="c1")
        again = await book.credit(bill.id, reference="c1")
        assert (again.request_id, again.repeated) == (first.request_id, True)

    opened.run(go)


def test_a_credit_of_what_is_left_is_idempotent_by_its_reference_and_stands_for_nothing_else(
    opened: Opened,
) -> None:
    bill, other = event_of(usage=Usage(1000, 0)), event_of(1, usage=Usage(1000, 0))

    async def go(book: LedgerBook) -> None:
        await book.ledger.settle(bill)
        await book.ledger.settle(other)
        assert (await book.credit(bill.id, "0.003", reference="part")).amount_nano == 3_000_000
        first = await book.credit(bill.id, reference="rest")
        assert (first.amount_nano, first.repeated) == (7_000_000, False)
        for _ in range(2):
            again = await book.credit(bill.id, reference="rest")
            assert (again.request_id, again.amount_nano) == (first.request_id, 7_000_000)
            assert again.repeated
        for request_id, reference in ((bill.id, "part"), (other.id, "rest")):
            with pytest.raises(BookingRefused, match="stands for another credit"):
                await book.credit(request_id, reference=reference)
        with pytest.raises(BookingRefused, match="0 can still be taken back"):
            await book.credit(bill.id, reference="more")

    opened.run(go)


def test_a_settlement_repeated_moves_a_balance_once(opened: Opened) -> None:
    event = event_of()

    async def go(book: LedgerBook) -> None:
        assert not await book.ledger.is_recorded(event.id)
        await asyncio.gather(*(book.ledger.settle(event) for _ in range(3)))
        await book.ledger.settle(event)
        assert await book.ledger.is_recorded(event.id)

    opened.run(go)
    assert opened.rows("SELECT balance_nano FROM balance") == [(-int(event.amount_nano),)]


def test_a_grant_is_spent_first_and_what_is_left_ends_at_its_time(opened: Opened) -> None:
    now = datetime.fromtimestamp(opened.now_ns / 1e9, UTC)
    bill = event_of(usage=Usage(1000, 0))

    async def go(book: LedgerBook) -> None:
        await book.recharge("acme", "10", reference="r")
        await book.grant("acme", "0.03", expires=now + timedelta(days=2))
        await book.grant("acme", "0.005", expires=now + timedelta(days=1))
        await book.ledger.settle(bill)  # ¥0.01
        await book.ledger.settle(bill)  # no second time
        assert await book.expire_grants() == 0
        opened.now_ns += 86_400 * 10**9
        assert await book.expire_grants() == 0  # that one was spent whole
        opened.now_ns += 86_400 * 10**9
        assert await book.expire_grants() == 1
        assert await book.expire_grants() == 0
        account = await book.account("acme")
        assert account is not None
        assert account.balance_nano == 10 * YUAN  # ¥0.025 were left, and are gone
        with pytest.raises(BookingRefused, match="in the future"):
            await book.grant("acme", "1", expires=now)
        last = datetime.max.replace(tzinfo=timezone(-timedelta(hours=14)))
        with pytest.raises(BookingRefused, match="before the year 10000"):
            await book.grant("acme", "1", expires=last)

    opened.run(go)
    assert events(opened)[-1].metadata == {"operation": "expire"}
    assert postings(opened)[-1] == ("account:acme", "expense:grant", 25_000_000)


def test_grants_of_accounts_that_have_nothing_keep_no_other_from_expiring(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lots, "_EXPIRIES_MAX", 3)
    now = datetime.fromtimestamp(opened.now_ns / 1e9, UTC)

    async def go(book: LedgerBook) -> None:
        for number in range(4):  # they owe more than they were given
            account = f"postpaid{number}"
            await book.ledger.settle(event_of(account=account, usage=Usage(1_000_000, 0)))
            await book.grant(account, "5", expires=now + timedelta(hours=1))
        await book.grant("trial", "100", expires=now + timedelta(hours=2))
        opened.now_ns += 86_400 * 10**9
        assert [await book.expire_grants() for _ in range(2)] == [1, 0]
        await book.recharge("postpaid0", "8", reference="r")  # ¥3 above nothing
        assert [await book.expire_grants() for _ in range(2)] == [1, 0]
        trial, paid = await book.account("trial"), await book.account("postpaid0")
        assert trial is not None
        assert paid is not None
        assert (trial.balance_nano, paid.balance_nano) == (0, 0)

    opened.run(go)


def test_accounts_are_created_set_suspended_and_pinned(opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        made = await book.create_account("acme", credit_limit="12.5", metadata={"team": "红"})
        assert (made.tier, made.credit_limit_nano, made.suspended) == (
            "Free",
            12_500_000_000,
            False,
        )
        with pytest.raises(BookingRefused, match="exists already"):
            await book.create_account("acme")
        pinned = await book.set_account("acme", tier="TIER3", suspended=True)
        assert (pinned.tier, pinned.pinned_tier, pinned.suspended) == ("Tier3", "Tier3", True)
        assert pinned.metadata == {"team": "红"}
        free = await book.set_account("acme", tier=None, suspended=False)
        assert (free.tier, free.pinned_tier, free.suspended) == ("Free", None, False)
        with pytest.raises(ConfigError, match="there is no tier 'Gold'"):
            await book.set_account("acme", tier="Gold")
        with pytest.raises(BookingRefused, match="there is no account 'nobody'"):
            await book.set_account("nobody", suspended=True)
        assert await book.account("nobody") is None
        await book.ledger.settle(event_of(account="only-billed"))
        assert [a.account for a in await book.accounts()] == ["acme", "only-billed"]
        assert (await book.set_account("only-billed", suspended=True)).suspended

    opened.run(go)


@pytest.mark.parametrize("name", ["", "a\x00b", "\ud800"])
def test_an_account_name_that_no_database_takes_is_refused(name: str, opened: Opened) -> None:
    async def go(book: LedgerBook) -> None:
        with pytest.raises(ConfigError, match="account id"):
            await book.recharge(name, "1", reference="r")

    opened.run(go)


def test_a_key_is_shown_once_and_only_its_hash_is_kept(opened: Opened) -> None:
    async def go(book: LedgerBook) -> Any:
        await book.create_account("acme")
        issued = await book.issue_key("acme", label="laptop")
        assert issued.key is not None
        assert issued.key.startswith("sk-")
        (kept,) = await book.keys("acme")
        assert kept.key is None
        assert (kept.key_id, kept.label, kept.revoked_at) == (issued.key_id, "laptop", None)
        ended = await book.revoke_key(issued.key_id)
        opened.now_ns += 10**9
        again = await book.revoke_key(issued.key)
        assert ended.revoked_at == again.revoked_at is not None
        with pytest.raises(BookingRefused, match="there is no account"):
            await book.issue_key("nobody")
        with pytest.raises(BookingRefused, match="there is no key"):
            await book.revoke_key("123456789012")
        return issued

    issued = opened.run(go)
    (row,) = opened.rows("SELECT sha256, key_id FROM api_key")
    assert row[0] == hashlib.sha256(issued.key.encode()).hexdigest()
    assert row[1] == issued.key_id == row[0][:12]


def test_every_change_that_a_look_up_may_see_counts_up(opened: Opened) -> None:
    async def go(book: LedgerBook) -> list[int]:
        from inf_middleware.ledgers.steps import Ask, Steps

        def version() -> Steps[int]:
            rows = yield Ask("SELECT accounts_version FROM meta")
            return int(rows[0][0])

        seen = [await book.ledger.read(version)]
        for change in (
            lambda: book.create_account("acme"),
            lambda: book.set_account("acme", suspended=True),
            lambda: book.issue_key("acme"),
            lambda: book.recharge("acme", "1", reference="r"),
            lambda: book.reverse("r"),
        ):
            await change()
            seen.append(await book.ledger.read(version))
        return seen

    seen = opened.run(go)
    assert seen == sorted(set(seen))


@settings(max_examples=15, deadline=None)
@given(amount=st.decimals("0.01", "999999", places=2), parts=st.integers(1, 4))
def test_recharged_in_parts_is_recharged(amount: Decimal, parts: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        opened = Opened(f"sqlite:///{folder}/l.db")

        async def go(book: LedgerBook) -> Any:
            for part in range(parts):
                receipt = await book.recharge("acme", amount, reference=str(part))
            return receipt

        account = opened.run(go).account
        assert account.recharged_nano == account.balance_nano == int(amount * YUAN) * parts
