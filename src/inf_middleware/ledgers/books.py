"""Accounts, keys and movements of money, as steps for either database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from inf_middleware.domain.books import HOUSE, KINDS, AccountRecord, KeyRecord, Operation, Receipt
from inf_middleware.domain.errors import AlreadyExists, BookingRefused, ConfigError, NotFound
from inf_middleware.domain.events import BillingEvent, movement_event
from inf_middleware.domain.money import AMOUNT_NANO_MAX, decimal_string
from inf_middleware.domain.tiers import Tiers
from inf_middleware.ledgers.lots import expire, open_lot
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.steps import Ask, Record, Steps

# Look-ups of every process see a change by this number.
_CHANGED = Ask("UPDATE meta SET accounts_version = accounts_version + 1")

_ACCOUNT = (
    "SELECT names.id, account.tier, coalesce(account.suspended, 0),"
    " coalesce(account.credit_limit_nano, 0), account.metadata, account.created_at,"
    " coalesce(balance.balance_nano, 0), coalesce(balance.held_nano, 0),"
    " coalesce(balance.recharged_nano, 0)"
    " FROM (SELECT id FROM account UNION SELECT account FROM balance) names"
    " LEFT JOIN account ON account.id = names.id"
    " LEFT JOIN balance ON balance.account = names.id AND balance.currency = ?"
)


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
        tier=_level(state.pinned_tier if state else None, recharged, m.tiers),
        amount_nano=m.amount_nano,
        currency=m.currency,
        now=m.now,
        metadata=_metadata(m),
        source=m.source,
    )
    yield from _ensure_account(m.account, m.now)
    yield Record([rows_of(event)])
    if m.reference is not None:
        yield Ask(
            "INSERT INTO reference (kind, reference, request_id, fingerprint) VALUES (?, ?, ?, ?)",
            (m.operation, m.reference, m.request_id, _fingerprint(m)),
        )
    if m.expires_at is not None:
        yield from open_lot(event, m.expires_at)
    yield _CHANGED
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


def account_of(account: str, currency: str, tiers: Tiers) -> Steps[AccountRecord | None]:
    """Return an account that was created, or that has had money; None for any other."""
    rows = yield Ask(f"{_ACCOUNT} WHERE names.id = ?", (currency, account))
    return _account(rows[0], currency, tiers) if rows else None


def accounts(
    currency: str, tiers: Tiers, after: str = "", count_max: int | None = None
) -> Steps[list[AccountRecord]]:
    """Return accounts by name, those after a name, as many as are wanted (None: all)."""
    limit = "" if count_max is None else f" LIMIT {count_max:d}"
    rows = yield Ask(f"{_ACCOUNT} WHERE names.id > ? ORDER BY names.id{limit}", (currency, after))
    return [_account(row, currency, tiers) for row in rows]


def create_account(account: str, now: str, settings: Mapping[str, Any]) -> Steps[None]:
    """Make an account.

    Raises:
        BookingRefused: It is there already.
    """
    if (yield Ask("SELECT 1 FROM account WHERE id = ?", (account,))):
        raise AlreadyExists(f"the account {account!r} exists already")
    yield from _ensure_account(account, now)
    yield from _set(account, settings)


def set_account(account: str, now: str, settings: Mapping[str, Any]) -> Steps[None]:
    """Change an account's settings: columns of its row.

    Raises:
        BookingRefused: There is no such account.
    """
    yield from _must_exist(account, now)
    yield from _set(account, settings)


def issue_key(account: str, sha256: str, label: str | None, now: str) -> Steps[KeyRecord]:
    """Keep the hash of a new key.

    Raises:
        BookingRefused: There is no such account.
    """
    yield from _must_exist(account, now)
    key_id = sha256[:12]
    yield Ask(
        "INSERT INTO api_key (sha256, key_id, account, label, created_at) VALUES (?, ?, ?, ?, ?)",
        (sha256, key_id, account, label, now),
    )
    yield _CHANGED
    return KeyRecord(key_id, account, label, now, None)


def keys(account: str | None) -> Steps[list[KeyRecord]]:
    """Return the keys of an account, or of all, oldest first."""
    where = "" if account is None else " WHERE account = ?"
    rows = yield Ask(
        "SELECT key_id, account, label, created_at, revoked_at FROM api_key"
        f"{where} ORDER BY account, created_at, key_id",
        () if account is None else (account,),
    )
    return [KeyRecord(*row) for row in rows]


def revoke_key(key_id: str, sha256: str, now: str) -> Steps[KeyRecord]:
    """End a key, told by its id or its hash; one that has ended stays so.

    Raises:
        BookingRefused: There is no such key.
    """
    rows = yield Ask("SELECT sha256 FROM api_key WHERE key_id = ? OR sha256 = ?", (key_id, sha256))
    if not rows:
        raise NotFound(f"there is no key {key_id[:12]!r} in this ledger")
    ended = yield Ask(
        "UPDATE api_key SET revoked_at = coalesce(revoked_at, ?) WHERE sha256 = ?"
        " RETURNING key_id, account, label, created_at, revoked_at",
        (now, rows[0][0]),
    )
    yield _CHANGED
    return KeyRecord(*ended[0])


def expire_grants(now_ns: int, now: str) -> Steps[int]:
    """Take back what is left of grants whose time is over."""
    return (yield from expire(now_ns, now))


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


def _ensure_account(account: str, now: str) -> Steps[None]:
    yield Ask(
        "INSERT INTO account (id, created_at) VALUES (?, ?) ON CONFLICT (id) DO NOTHING",
        (account, now),
    )


def _must_exist(account: str, now: str) -> Steps[None]:
    known = yield Ask(
        "SELECT 1 FROM account WHERE id = ?"
        " UNION ALL SELECT 1 FROM balance WHERE account = ? LIMIT 1",
        (account, account),
    )
    if not known:
        raise NotFound(f"there is no account {account!r}; create it first, or recharge it")
    yield from _ensure_account(account, now)  # one that has only been billed so far


# The settings of an account: columns of its row.
_SETTINGS = ("tier", "suspended", "credit_limit_nano", "metadata")


def _set(account: str, settings: Mapping[str, Any]) -> Steps[None]:
    for name in _SETTINGS:
        if name in settings:
            yield Ask(
                f"UPDATE account SET {name} = ? WHERE id = ?",
                (settings[name], account),
            )
    yield _CHANGED


def _account(row: Any, currency: str, tiers: Tiers) -> AccountRecord:
    name, tier, suspended, credit, metadata, created, balance, held, recharged = row
    return AccountRecord(
        account=name,
        tier=_level(tier, recharged, tiers),
        pinned_tier=tier,
        suspended=bool(suspended),
        currency=currency,
        balance_nano=balance,
        held_nano=held,
        recharged_nano=recharged,
        credit_limit_nano=credit,
        metadata=msgspec.json.decode(metadata or "{}"),
        created_at=created,
    )


def _level(pinned: str | None, recharged_nano: int, tiers: Tiers) -> str:
    if pinned is None:
        return tiers.for_recharge(decimal_string(recharged_nano)).name
    try:
        return tiers.named(pinned).name
    except ConfigError:  # pinned to a level of another table
        return pinned
