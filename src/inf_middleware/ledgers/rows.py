"""From events to rows: what one settlement, or one movement of money, writes."""

from collections.abc import Sequence
from typing import Any

import msgspec

from inf_middleware.domain.books import HOUSE
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.steps import Ask, Steps

_COLUMNS = (
    "request_id",
    "kind",
    "corrects",
    "account",
    "key_id",
    "tier",
    "endpoint",
    "model",
    "response_model",
    "response_id",
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "basis",
    "currency",
    "price_version",
    "outcome",
    "would_refuse",
    "idempotency_key",
    "started_at",
    "settled_at",
)

# A repeated id changes nothing: a settlement may be handed over again.
_INSERT_REQUEST = (
    f"INSERT INTO request ({', '.join(_COLUMNS)},"
    " amount_nano, overdrawn_nano, unpriced, lines, metadata)"
    f" VALUES ({', '.join('?' * (len(_COLUMNS) + 5))}) ON CONFLICT (request_id) DO NOTHING"
)
# Only of the record that is there: one that was written before stays as it is, amount included.
_INSERT_POSTING = (
    "INSERT INTO posting (request_id, debit, credit, amount_nano, currency)"
    " SELECT request_id, CAST(? AS TEXT), CAST(? AS TEXT), amount_nano, currency FROM request"
    " WHERE request_id = ? AND amount_nano = ? ON CONFLICT (request_id) DO NOTHING"
)
_INSERT_EVENT = "INSERT INTO outbox (id, body) VALUES (?, ?) ON CONFLICT (id) DO NOTHING"

# A call's posting: the customer owes more, and the house has earned as much.
_EARNED = ("revenue:usage", False)

INTEGER_MAX = 2**63 - 1


class Rows(msgspec.Struct):
    """What one settlement writes: its record, its posting where it costs anything, its event.

    `state` is what becomes of the client's idempotency key, where there is one.
    """

    request: tuple[Any, ...]
    posting: tuple[Any, ...] | None
    event: tuple[str, bytes]
    state: str | None = None


def rows_of(event: BillingEvent) -> Rows:
    """Turn an event into rows.

    Raises:
        ValueError: An amount is not a number from 0 to 64 bits.
    """
    amount, overdrawn = int(event.amount_nano), int(event.overdrawn_nano)
    if not 0 <= amount <= INTEGER_MAX or not 0 <= overdrawn <= INTEGER_MAX:
        raise ValueError(f"the amount {event.amount_nano} of {event.id} does not fit 64 bits")
    request = (
        *(getattr(event, name) for name in _COLUMNS),
        amount,
        overdrawn,
        int(event.unpriced),
        msgspec.json.encode(event.lines).decode(),
        msgspec.json.encode(event.metadata).decode(),
    )
    posting = None
    if amount:
        house, gives = HOUSE[event.metadata["operation"]] if event.kind != "usage" else _EARNED
        sides = (house, f"account:{event.account}")
        posting = (event.id, *(sides if gives else reversed(sides)), amount, event.currency)
    state = None
    if event.idempotency_key is not None:
        state = "complete" if event.outcome == "complete" else "partial"
    return Rows(request, posting, (event.id, event.encode()), state)


def write(rows: Sequence[Rows]) -> Steps[None]:
    """Write records, postings and events; what is written already stays as it is."""
    yield Ask(_INSERT_REQUEST, [row.request for row in rows], many=True)
    postings = [row.posting for row in rows if row.posting]
    yield Ask(
        _INSERT_POSTING,
        [(debit, credit, request_id, amount) for request_id, debit, credit, amount, _ in postings],
        many=True,
    )
    yield Ask(_INSERT_EVENT, [row.event for row in rows], many=True)
