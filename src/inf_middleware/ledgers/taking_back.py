"""A bill whose caller was told that there is none is taken back, as steps for either database.

A commit whose answer was lost may have been made all the same, and so may one that came from
another process meanwhile. What was recorded stays; a correction says that it is owed by nobody.
"""

from inf_middleware.domain.events import BillingEvent, movement_event
from inf_middleware.domain.ids import uuid7
from inf_middleware.domain.moments import rfc3339
from inf_middleware.ledgers.continuing import continuation_of
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.steps import Ask, Record, Steps

_NOTE = "recorded, and its caller was told that it was not"


def take_back(request_id: str, now_ns: int) -> Steps[None]:
    """Correct what is left of a call's bill, and let its idempotency key run again."""
    rows = yield Ask(
        "SELECT outbox.body, request.amount_nano - coalesce((SELECT sum(amount_nano)"
        "  FROM request AS correction WHERE correction.corrects = request.request_id), 0)"
        " FROM request JOIN outbox ON outbox.id = request.request_id"
        " WHERE request.request_id IN (?, ?) AND request.kind = 'usage' ORDER BY request.seq",
        (request_id, continuation_of(request_id)),
    )
    if not rows:
        return
    yield Ask("UPDATE idempotency SET state = 'partial' WHERE request_id = ?", (request_id,))
    owed = [(BillingEvent.decode(bytes(body)), int(left_nano)) for body, left_nano in rows]
    for bill, left_nano in owed:
        if left_nano > 0:
            yield Record([rows_of(_correction(bill, left_nano, now_ns))])


def _correction(bill: BillingEvent, amount_nano: int, now_ns: int) -> BillingEvent:
    return movement_event(
        uuid7(now_ns),
        kind="correction",
        corrects=bill.id,
        account=bill.account,
        tier=bill.tier,
        amount_nano=amount_nano,
        currency=bill.currency,
        now=rfc3339(now_ns),
        metadata={"operation": "credit", "note": _NOTE},
        source=bill.source,
    )
