"""What an account had and has: its statements, and one record with the balance around it."""

from dataclasses import dataclass

from inf_middleware.domain.errors import BookingRefused
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.continuing import continuation_of
from inf_middleware.ledgers.reports import UsageRow
from inf_middleware.ledgers.steps import Ask, Steps


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
