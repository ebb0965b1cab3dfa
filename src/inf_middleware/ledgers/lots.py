"""Grants that expire: spent before all else, and taken back at their time where they are not."""

from typing import Any

from msgspec.structs import replace

from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.ids import uuid7
from inf_middleware.domain.money import decimal_string
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.steps import Ask, Record, Steps

# So many grants end in one transaction; the others in the next.
_EXPIRIES_MAX = 100


def open_lot(event: BillingEvent, expires_at: str) -> Steps[None]:
    """Note that what a grant gives is there until `expires_at`."""
    yield Ask(
        "INSERT INTO lot (request_id, account, currency, left_nano, expires_at)"
        " VALUES (?, ?, ?, ?, ?)",
        (event.id, event.account, event.currency, int(event.amount_nano), expires_at),
    )


def spend(account: str, currency: str, amount_nano: int) -> Steps[None]:
    """Take an amount that was charged from the account's open lots, as far as they reach."""
    lots = yield Ask(
        "SELECT request_id, left_nano FROM lot WHERE account = ? AND currency = ?"
        " AND left_nano > 0 ORDER BY expires_at, request_id",
        (account, currency),
    )
    for request_id, left in lots:
        taken = min(left, amount_nano)
        yield Ask(
            "UPDATE lot SET left_nano = left_nano - ? WHERE request_id = ?", (taken, request_id)
        )
        amount_nano -= taken
        if not amount_nano:
            return


def expire(now_ns: int, now: str) -> Steps[int]:
    """Take back what is left of grants whose time is over; return how many.

    What running calls hold stays theirs, and grants are spent before all else, the earliest first:
    so it is held of those that are due, whatever else the account has, and taken back as the calls
    end. Where an account has nothing now, its grants wait until it has, and no other's for them.
    """
    due = yield Ask(
        "SELECT due.request_id, due.account, due.currency, left_nano,"
        " CASE WHEN due_nano < balance_nano THEN due_nano ELSE balance_nano END - held_nano,"
        " outbox.body"
        " FROM (SELECT lot.request_id, lot.account, lot.currency, left_nano, expires_at, due_nano,"
        "   balance_nano, held_nano"
        "  FROM (SELECT request_id, account, currency, left_nano, expires_at,"
        "    CAST(sum(left_nano) OVER (PARTITION BY account, currency) AS BIGINT) AS due_nano"
        "   FROM lot WHERE left_nano > 0 AND expires_at <= ?) lot"
        "  JOIN balance ON balance.account = lot.account AND balance.currency = lot.currency"
        "  WHERE balance_nano > held_nano AND due_nano > held_nano"
        f"  ORDER BY expires_at, lot.request_id LIMIT {_EXPIRIES_MAX}) due"
        " JOIN outbox ON outbox.id = due.request_id ORDER BY expires_at, due.request_id",
        (now,),
    )
    free: dict[tuple[str, str], int] = {}
    count = 0
    for request_id, owner, currency, left, takeable, body in due:
        remaining = free.setdefault((owner, currency), takeable)
        amount = min(left, remaining)
        if amount <= 0:
            continue
        free[owner, currency] = remaining - amount
        event = _expiry(BillingEvent.decode(bytes(body)), amount, uuid7(now_ns), now)
        yield Ask(
            "UPDATE lot SET left_nano = left_nano - ? WHERE request_id = ?", (amount, request_id)
        )
        yield Record([rows_of(event)])
        count += 1
    return count


def _expiry(grant: BillingEvent, amount: int, request_id: str, now: str) -> BillingEvent:
    metadata: dict[str, Any] = {"operation": "expire"}
    return replace(
        grant,
        request_id=request_id,
        kind="correction",
        corrects=grant.id,
        amount_nano=str(amount),
        amount=decimal_string(amount),
        started_at=now,
        settled_at=now,
        metadata=metadata,
    )
