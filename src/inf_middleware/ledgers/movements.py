"""Movements of money that are no calls, as steps for either database: each once per reference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from inf_middleware.domain.books import HOUSE, KINDS, AccountRecord, Operation, Receipt
from inf_middleware.domain.errors import AlreadyExists, BookingRefused, NotFound
from inf_middleware.domain.events import BillingEvent, movement_event
from inf_middleware.domain.money import AMOUNT_NANO_MAX, decimal_string
from inf_middleware.domain.tiers import Tiers
from inf_middleware.ledgers.accounts import CHANGED, account_of, ensure_account, level_of
from inf_middleware.ledgers.lots import open_lot
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.steps import Ask, Record, Steps


@dataclass(frozen=True, slots=True)
class Movement:
    """What is to be booked: `request_id` and `now` are those of its record and event."""

    operation: Operation
    account: str
    amount_nano: int
    currency: str
    request_id: str
    now: str
    now_ns: int
    source: str
    tiers: Tiers
    reference: str | None = None
    corrects: str | None = None
    note: str | None = None
    expires_at: str | None = None


def book(movement: Movement) -> Steps[Receipt]:
    """Book one movement, once per reference.

    Raises:
        BookingRefused: The reference stands for another movement, or more would go than is there.
    """
    m = movement
    earlier = yield from _booked_before(m)
    if earlier is not None:
        return (yield from _receipt(m, earlier, repeated=True))
    state = yield from account_of(m.account, m.currency, m.tiers)
    _check(m, state)
    recharged = (state.recharged_nano if state else 0) + _recharges(m)
    event = movement_event(
        m.request_id,
        kind=KINDS[m.operation],
        corrects=m.corrects,
        account=m.account,
        tier=level_of(state.pinned_tier if state else None, recharged, m.tiers),
        amount_nano=m.amount_nano,
        currency=m.currency,
        now=m.now,
        metadata=_metadata(m),
        source=m.source,
    )
    yield from ensure_account(m.account, m.now)
    yield Record([rows_of(event)])
    if m.reference is not None:
        yield Ask(
            "INSERT INTO reference (kind, reference, request_id, fingerprint) VALUES (?, ?, ?, ?)",
            (m.operation, m.reference, m.request_id, _fingerprint(m)),
        )
    if m.expires_at is not None:
        yield from open_lot(event, m.expires_at)
    yield CHANGED
    return (yield from _receipt(m, event, repeated=False))


def correct(movement: Movement, corrected: str, amount_nano: int | None) -> Steps[Receipt]:
    """Book a `credit` of a bill or the `reverse` of a recharge; the record names the account.

    `corrected` is its id, or a recharge's reference. No amount means all that is left of it.

    Raises:
        BookingRefused: There is no such record, or more would be taken back than it has.
    """
    kind = "usage" if movement.operation == "credit" else "recharge"
    rows = yield Ask(
        "SELECT request_id, account, currency, amount_nano FROM request WHERE kind = ?"
        " AND (request_id = ? OR request_id ="
        "  (SELECT request_id FROM reference WHERE reference.kind = ? AND reference = ?))",
        (kind, corrected, kind, corrected),
    )
    if not rows:
        what = "request" if kind == "usage" else "recharge"
        raise NotFound(f"there is no {what} {corrected!r} in this ledger")
    request_id, account, currency, amount = rows[0]
    booked = yield Ask(
        "SELECT request_id, amount_nano FROM request WHERE corrects = ? ORDER BY seq",
        (request_id,),
    )
    left = amount - sum(row[1] for row in booked)
    asked = amount_nano
    if asked is None:
        asked = yield from _left_when_booked(movement, amount, booked)
    m = replace(
        movement, account=account, currency=currency, corrects=request_id, amount_nano=asked
    )
    if m.operation == "reverse" and booked:
        return (yield from _receipt(m, (yield from _event(booked[0][0])), repeated=True))
    earlier = yield from _booked_before(m)
    if earlier is not None:
        return (yield from _receipt(m, earlier, repeated=True))
    if not 0 < m.amount_nano <= left:
        raise BookingRefused(
            f"{request_id} is of {decimal_string(amount)} {currency}, of which"
            f" {decimal_string(left)} can still be taken back"
        )
    return (yield from book(m))


def _booked_before(m: Movement) -> Steps[BillingEvent | None]:
    if m.reference is None:
        return None
    rows = yield Ask(
        "SELECT request_id, fingerprint FROM reference WHERE kind = ? AND reference = ?",
        (m.operation, m.reference),
    )
    if not rows:
        return None
    if rows[0][1] != _fingerprint(m):
        raise AlreadyExists(
            f"the reference {m.reference!r} stands for another {m.operation} already:"
            f" {rows[0][0]}; nothing was booked"
        )
    return (yield from _event(rows[0][0]))


def _left_when_booked(m: Movement, amount: int, booked: Sequence[Any]) -> Steps[int]:
    """Return what was left of a record of `amount` when a reference of its was booked, or is now.

    `booked` are the ids and amounts of its corrections. So "all that is left" told again compares
    with what it was the first time.
    """
    rows = yield Ask(
        "SELECT request_id FROM reference WHERE kind = ? AND reference = ?",
        (m.operation, m.reference),
    )
    for request_id, taken in booked:
        if rows and request_id == rows[0][0]:
            break
        amount -= taken
    return amount


def _event(request_id: str) -> Steps[BillingEvent]:
    rows = yield Ask("SELECT body FROM outbox WHERE id = ?", (request_id,))
    return BillingEvent.decode(bytes(rows[0][0]))


def _receipt(m: Movement, event: BillingEvent, *, repeated: bool) -> Steps[Receipt]:
    state = yield from account_of(event.account, event.currency, m.tiers)
    assert state is not None  # it has had money
    return Receipt(
        event.id,
        event.kind,
        m.operation,
        event.corrects,
        event.metadata.get("reference"),
        int(event.amount_nano),
        event.settled_at,
        repeated,
        state,
    )


def _check(m: Movement, state: AccountRecord | None) -> None:
    balance = state.balance_nano if state else 0
    if m.operation == "withdraw":
        available = balance - (state.held_nano if state else 0)
        if m.amount_nano > available:
            raise BookingRefused(
                f"{m.account} has {decimal_string(max(available, 0))} {m.currency} to withdraw,"
                f" not {decimal_string(m.amount_nano)}"
            )
    after = abs(balance) + m.amount_nano
    if max(after, (state.recharged_nano if state else 0) + m.amount_nano) > AMOUNT_NANO_MAX:
        raise BookingRefused(f"the balance of {m.account} would not fit 64 bits")


def _recharges(m: Movement) -> int:
    house, gives = HOUSE[m.operation]
    if house != HOUSE["recharge"][0]:
        return 0
    return m.amount_nano if gives else -m.amount_nano


def _fingerprint(m: Movement) -> str:
    parts = (m.account, m.amount_nano, m.currency, m.corrects, m.expires_at)
    return msgspec.json.encode(parts).decode()


def _metadata(m: Movement) -> dict[str, Any]:
    told = {
        "operation": m.operation,
        "reference": m.reference,
        "note": m.note,
        "expires_at": m.expires_at,
    }
    return {name: value for name, value in told.items() if value is not None}
