"""From events to rows: what one settlement, or one movement of money, writes."""

from operator import itemgetter
from typing import Any

import msgspec
from msgspec.structs import astuple

from inf_middleware.domain.books import HOUSE
from inf_middleware.domain.events import BillingEvent

_EVENT_COLUMNS = (
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

# Of the table `request`, in the order of `Rows.request`.
COLUMNS = (
    *_EVENT_COLUMNS,
    "amount_nano",
    "overdrawn_nano",
    "unpriced",
    "lines",
    "metadata",
)

_values_of = itemgetter(*map(BillingEvent.__struct_fields__.index, _EVENT_COLUMNS))
_encode = msgspec.json.Encoder().encode

# A call's posting: the customer owes more, and the house has earned as much.
EARNED = "revenue:usage"

INTEGER_MAX = 2**63 - 1


class Rows(msgspec.Struct, gc=False):
    """What one settlement writes: its record, its posting where it costs anything, its event.

    `event` is in the very bytes that sinks get; `state` is what becomes of the client's
    idempotency key, where there is one. `again` where its call may have been ended at a checkpoint.
    """

    request_id: str
    request: tuple[Any, ...]
    posting: tuple[Any, ...] | None
    event: bytes
    state: str | None = None
    again: bool = False


def rows_of(event: BillingEvent) -> Rows:
    """Turn an event into rows.

    Raises:
        ValueError: An amount is not a number from 0 to 64 bits.
    """
    request_id = event.request_id
    amount, overdrawn = int(event.amount_nano), int(event.overdrawn_nano)
    if not 0 <= amount <= INTEGER_MAX or not 0 <= overdrawn <= INTEGER_MAX:
        raise ValueError(f"the amount {event.amount_nano} of {request_id} does not fit 64 bits")
    request = _values_of(astuple(event)) + (  # noqa: RUF005 - unpacked it is copied twice
        amount,
        overdrawn,
        int(event.unpriced),
        _encode(event.lines).decode(),
        _encode(event.metadata).decode() if event.metadata else "{}",
    )
    posting = None
    if amount:
        debit, credit = f"account:{event.account}", EARNED
        if event.kind != "usage":
            house, gives = HOUSE[event.metadata["operation"]]
            debit, credit = (house, debit) if gives else (debit, house)
        posting = (request_id, debit, credit, amount, event.currency)
    state = None
    if event.idempotency_key is not None:
        state = "complete" if event.outcome == "complete" else "partial"
    return Rows(request_id, request, posting, event.encode(), state)
