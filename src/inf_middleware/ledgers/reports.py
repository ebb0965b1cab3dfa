"""What the ledger tells the operator: usage, statements, and one request in full."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any, Literal, TypeAlias

import msgspec

from inf_middleware.domain.errors import BookingRefused
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.moments import day_of
from inf_middleware.ledgers.continuing import continuation_of
from inf_middleware.ledgers.steps import Ask, Steps

By: TypeAlias = Literal["account", "day", "model", "key"]

_COLUMNS: dict[By, str] = {
    "account": "account",
    "day": "substr(settled_at, 1, 10)",
    "model": "model",
    "key": "key_id",
}

# Calls, and the credits of their bills; a credit counts on the day it was given.
_CHARGES = (
    "(SELECT account, model, key_id, settled_at, currency, 1 AS calls, input_tokens,"
    "  output_tokens, amount_nano, unpriced FROM {records} WHERE kind = 'usage'"
    " UNION ALL"
    " SELECT credit.account, bill.model, bill.key_id, credit.settled_at, credit.currency, 0, 0,"
    "  0, -credit.amount_nano, 0 FROM {records} credit"
    "  JOIN request bill ON bill.request_id = credit.corrects"
    "  WHERE credit.kind = 'correction' AND bill.kind = 'usage') charges"
)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Sums over calls; what they are sums of is None where it was not asked for.

    `amount_nano` is less what was credited. `tier` is the account's latest.
    """

    account: str | None
    day: str | None
    model: str | None
    key_id: str | None
    tier: str | None
    requests: int
    input_tokens: int
    output_tokens: int
    amount_nano: int
    currency: str
    unpriced_requests: int


@dataclass(frozen=True, slots=True)
class Period:
    """From a moment on, and up to but without another; as records write moments."""

    start: str | None = None
    end: str | None = None


def usage(
    by: Sequence[By], *, account: str | None, period: Period, zone: tzinfo = UTC
) -> Steps[list[UsageRow]]:
    """Sum up calls by what `by` names and by currency, dearest first, days in order."""
    columns = [_COLUMNS[name] for name in by]
    if "day" in by and zone is not UTC:
        # No time zone cuts a minute: minutes are summed up here, and days made of them below.
        columns[list(by).index("day")] = "substr(settled_at, 1, 16)"
    grouped = ", ".join([*columns, "currency"])
    where, params = where_of(account, period)
    charges = _CHARGES.format(records=_records_of(account, period))
    rows = yield Ask(
        f"SELECT {grouped}, CAST(sum(calls) AS BIGINT), CAST(sum(input_tokens) AS BIGINT),"
        " CAST(sum(output_tokens) AS BIGINT), CAST(sum(amount_nano) AS BIGINT),"
        f" CAST(sum(unpriced) AS BIGINT) FROM {charges}{where} GROUP BY {grouped}",
        params,
    )
    summed: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        key = list(row[: len(by) + 1])
        if "day" in by and zone is not UTC:
            place = list(by).index("day")
            key[place] = day_of(f"{key[place]}:00Z", zone)
        sums = summed.setdefault(tuple(key), [0] * 5)
        for number, value in enumerate(row[len(by) + 1 :]):
            sums[number] += value
    tiers = (yield from _latest_tiers(summed, by)) if by == ["account"] else {}
    found = []
    for key_values, (calls, inputs, outputs, amount, unpriced) in summed.items():
        named = dict(zip(by, key_values, strict=False))
        found.append(
            UsageRow(
                account=named.get("account"),
                day=named.get("day"),
                model=named.get("model"),
                key_id=named.get("key"),
                tier=tiers.get(str(named.get("account"))),
                requests=calls,
                input_tokens=inputs,
                output_tokens=outputs,
                amount_nano=amount,
                currency=str(key_values[-1]),
                unpriced_requests=unpriced,
            )
        )
    names = [tuple(getattr(row, _FIELDS[name]) or "" for name in by) for row in found]
    order = sorted(
        range(len(found)),
        key=lambda n: (found[n].day or "", -found[n].amount_nano, names[n]),
    )
    return [found[n] for n in order]


_FIELDS: dict[By, str] = {"account": "account", "day": "day", "model": "model", "key": "key_id"}


@dataclass(frozen=True, slots=True)
class Statement:
    """An account's month: what it had, what came and went, what it used, and what it has."""

    account: str
    currency: str
    start: str
    end: str
    opening_nano: int
    movements: tuple[BillingEvent, ...]
    usage: tuple[UsageRow, ...]
    closing_nano: int


def statement(account: str, currency: str, start: str, end: str) -> Steps[Statement]:
    """Make up an account's statement over a period.

    Raises:
        BookingRefused: The ledger has nothing of that account.
    """
    known = yield Ask(
        "SELECT 1 FROM account WHERE id = ?"
        " UNION ALL SELECT 1 FROM request_by_account WHERE account = ? LIMIT 1",
        (account, account),
    )
    if not known:
        raise BookingRefused(f"there is no account {account!r} in this ledger")
    opening = yield from _balance_at(account, currency, start)
    closing = yield from _balance_at(account, currency, end)
    bodies = yield Ask(
        "SELECT outbox.body FROM request_by_account request"
        " JOIN outbox ON outbox.id = request.request_id"
        " WHERE request.account = ? AND request.currency = ? AND request.kind <> 'usage'"
        " AND request.settled_at >= ? AND request.settled_at < ? ORDER BY request.seq",
        (account, currency, start, end),
    )
    rows = yield from _calls_by_model(account, currency, start, end)
    movements = tuple(BillingEvent.decode(bytes(row[0])) for row in bodies)
    return Statement(account, currency, start, end, opening, movements, rows, closing)


@dataclass(frozen=True, slots=True)
class Shown:
    """One record with all that a dispute asks for.

    `continuation` is what a call used beyond its checkpoint, told after it was ended at that;
    `deliveries` say per sink "delivered", "waiting", or why it was refused for good.
    """

    event: BillingEvent
    balance_before_nano: int
    balance_after_nano: int
    corrections: tuple[BillingEvent, ...]
    continuation: BillingEvent | None
    deliveries: dict[str, str]


def show(request_id: str) -> Steps[Shown]:
    """Tell all about one record.

    Raises:
        BookingRefused: There is none of that id.
    """
    rows = yield Ask(
        "SELECT outbox.seq, outbox.body, request.account, request.currency"
        " FROM request JOIN outbox ON outbox.id = request.request_id"
        " WHERE request.request_id = ?",
        (request_id,),
    )
    if not rows:
        raise BookingRefused(f"there is no request {request_id!r} in this ledger")
    place, body, account, currency = rows[0]
    moved = yield Ask(
        f"SELECT seq, {_MOVED} FROM posting WHERE request_id = ?", (*_sides(account), request_id)
    )
    if moved:
        posted, own = moved[0]
    else:  # it moved nothing: the balance is that of the last record before it
        last = yield Ask(
            "SELECT max(posting.seq) FROM posting JOIN outbox ON outbox.id = posting.request_id"
            " WHERE outbox.seq < ?",
            (place,),
        )
        posted, own = last[0][0] or 0, 0
    after = yield Ask(
        f"SELECT CAST(coalesce(sum({_MOVED}), 0) AS BIGINT) FROM posting"
        " JOIN request_by_account request ON request.request_id = posting.request_id"
        " WHERE request.account = ? AND posting.currency = ? AND posting.seq <= ?",
        (*_sides(account), account, currency, posted),
    )
    corrections = yield Ask(
        "SELECT outbox.body FROM request JOIN outbox ON outbox.id = request.request_id"
        " WHERE request.corrects = ? ORDER BY request.seq",
        (request_id,),
    )
    continuation = yield Ask("SELECT body FROM outbox WHERE id = ?", (continuation_of(request_id),))
    sinks = yield Ask(
        "SELECT sink_cursor.sink, sink_cursor.seq, dead_letter.reason FROM sink_cursor"
        " LEFT JOIN dead_letter ON dead_letter.sink = sink_cursor.sink AND dead_letter.id = ?"
        " ORDER BY 1",
        (request_id,),
    )
    return Shown(
        BillingEvent.decode(bytes(body)),
        after[0][0] - own,
        after[0][0],
        tuple(BillingEvent.decode(bytes(row[0])) for row in corrections),
        BillingEvent.decode(bytes(continuation[0][0])) if continuation else None,
        {
            sink: f"refused: {reason}" if reason else "delivered" if at >= place else "waiting"
            for sink, at, reason in sinks
        },
    )


def _latest_tiers(
    summed: dict[tuple[Any, ...], list[int]], by: Sequence[By]
) -> Steps[dict[str, str]]:
    tiers = {}
    for account in {str(key[list(by).index("account")]) for key in summed}:
        rows = yield Ask(
            "SELECT tier, settled_at, seq FROM request_by_account WHERE account = ?"
            " ORDER BY settled_at DESC, seq DESC LIMIT 1",
            (account,),
        )
        tiers[account] = rows[0][0]
    return tiers


def _calls_by_model(
    account: str, currency: str, start: str, end: str
) -> Steps[tuple[UsageRow, ...]]:
    rows = yield Ask(
        "SELECT model, count(*), CAST(sum(input_tokens) AS BIGINT),"
        " CAST(sum(output_tokens) AS BIGINT), CAST(sum(amount_nano) AS BIGINT),"
        " CAST(sum(unpriced) AS BIGINT) FROM request_by_account WHERE kind = 'usage'"
        " AND account = ?"
        " AND currency = ? AND settled_at >= ? AND settled_at < ? GROUP BY model ORDER BY model",
        (account, currency, start, end),
    )
    return tuple(
        UsageRow(None, None, model, None, None, calls, inputs, outputs, amount, currency, unpriced)
        for model, calls, inputs, outputs, amount, unpriced in rows
    )


def _balance_at(account: str, currency: str, moment: str) -> Steps[int]:
    rows = yield Ask(
        f"SELECT CAST(coalesce(sum({_MOVED}), 0) AS BIGINT) FROM posting"
        " JOIN request_by_account request ON request.request_id = posting.request_id"
        " WHERE request.account = ? AND posting.currency = ? AND request.settled_at < ?",
        (*_sides(account), account, currency, moment),
    )
    return int(rows[0][0])


# How a posting moves the balance of the account whose two sides are its parameters.
_MOVED = (
    "CASE WHEN posting.credit = ? THEN posting.amount_nano"
    " WHEN posting.debit = ? THEN -posting.amount_nano ELSE 0 END"
)


def _sides(account: str) -> tuple[str, str]:
    return f"account:{account}", f"account:{account}"


def _records_of(account: str | None, period: Period) -> str:
    if account is not None:
        return "request_by_account"
    return "request" if period == Period() else "request_by_time"


def where_of(
    account: str | None, period: Period, keyword: str = "WHERE"
) -> tuple[str, tuple[str, ...]]:
    """Return the condition on records of an account and a period, and what it is given."""
    conditions = [
        (condition, value)
        for condition, value in (
            ("account = ?", account),
            ("settled_at >= ?", period.start),
            ("settled_at < ?", period.end),
        )
        if value is not None
    ]
    if not conditions:
        return "", ()
    text = " AND ".join(condition for condition, _ in conditions)
    return f" {keyword} {text}", tuple(value for _, value in conditions)


def lines_amount(event: BillingEvent) -> int:
    """Return what an event's lines add up to."""
    return sum(line.quantity * int(line.unit_price_nano) for line in event.lines)


def flat(event: BillingEvent) -> dict[str, Any]:
    """Return an event's data as the export shows it."""
    data: dict[str, Any] = msgspec.to_builtins(event)
    del data["source"]
    return data
