"""Events of a period, page by page, for an export."""

from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.reports import Period, where_of
from inf_middleware.ledgers.steps import Ask, Steps


def places(period: Period) -> Steps[tuple[int, int] | None]:
    """Return the first and the last place in the outbox of a period; None where it has no events.

    Without them an export of a day would look through all that came before it, and after.
    """
    where, params = where_of(None, period)
    rows = yield Ask(
        "SELECT min(outbox.seq), max(outbox.seq) FROM request_by_time request"
        f" JOIN outbox ON outbox.id = request.request_id{where}",
        params,
    )
    ((first, last),) = rows
    return None if first is None else (int(first), int(last))


def events(
    after: int, count_max: int, *, account: str | None, period: Period, last: int | None = None
) -> Steps[list[tuple[int, BillingEvent]]]:
    """Return the next events after a place in the outbox, and up to `last`, for pages of them."""
    # Of one account few of all are wanted: they are found first, for a place with a sign is no key.
    place = "outbox.seq" if account is None else "+outbox.seq"
    records = "request" if account is None else "request_by_account"
    where, params = where_of(account, period, "AND")
    until: tuple[int, ...] = ()
    if last is not None:
        where, until = f" AND {place} <= ?{where}", (last,)
    rows = yield Ask(
        f"SELECT outbox.seq, outbox.body FROM outbox JOIN {records} request"
        f" ON request.request_id = outbox.id WHERE {place} > ?{where}"
        f" ORDER BY {place} LIMIT {count_max:d}",
        (after, *until, *params),
    )
    return [(seq, BillingEvent.decode(bytes(body))) for seq, body in rows]
