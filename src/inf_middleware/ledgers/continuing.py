"""What a call used beyond the checkpoint that it was ended at, as steps for either database.

A process that was cut off for longer than its lease, or whose bills were kept until after a reboot,
settles calls that were taken for lost. What is recorded stays; the rest is a record of its own.
"""

import hashlib
from collections.abc import Collection, Sequence

from msgspec.structs import replace

from inf_middleware.domain.events import BillingEvent, EventLine, movement_event
from inf_middleware.domain.money import decimal_string
from inf_middleware.ledgers.rows import Rows, rows_of
from inf_middleware.ledgers.steps import Ask, Steps

_NOTE = "ended at its checkpoint; its bill came later, and tells less of a part of it"

_COUNTS = (
    "input_tokens",
    "output_tokens",
    "cached_input_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
)


# A call's record as a lost one, if it is not continued yet: its event, what is left of its amount,
# and what its account has available.
_LOST = (
    "SELECT outbox.body, request.amount_nano - coalesce((SELECT sum(amount_nano)"
    "  FROM request AS correction WHERE correction.corrects = request.request_id), 0),"
    " coalesce((SELECT balance_nano - held_nano FROM balance"
    "  WHERE account = request.account AND currency = request.currency), 0)"
    "  + coalesce((SELECT CAST(fingerprint AS BIGINT) FROM reference"
    "  WHERE reference.kind = 'lost' AND reference = request.request_id), 0)"
    " FROM request JOIN outbox ON outbox.id = request.request_id"
    " WHERE request.request_id = ? AND request.kind = 'usage' AND request.outcome = 'worker_lost'"
    " AND NOT EXISTS (SELECT 1 FROM request WHERE request_id = ?)"
)


def continuation_of(request_id: str) -> str:
    """Return the id of what continues a call's record: always the same, so that it is one."""
    return _derived(request_id, "continues")


def keep_credits(credits_nano: Sequence[tuple[str, int]]) -> Steps[None]:
    """Keep the credit limits of calls that are ended as lost, for what they tell later.

    Among the references, as probes are, under a kind that no movement has.
    """
    yield Ask(
        "INSERT INTO reference (kind, reference, request_id, fingerprint)"
        " VALUES ('lost', ?, '', ?) ON CONFLICT (kind, reference) DO NOTHING",
        [(request_id, str(credit_nano)) for request_id, credit_nano in credits_nano],
        many=True,
    )


def continued(rows: Sequence[Rows], there: Collection[str]) -> Steps[list[Rows]]:
    """Return what is to be written of settlements that are there already, as lost ones."""
    wanted: list[Rows] = []
    moved: dict[tuple[str, str], int] = {}  # of an account, by what is wanted so far
    for row in {row.request_id: row for row in rows if row.request_id in there}.values():
        found = yield Ask(_LOST, (row.request_id, continuation_of(row.request_id)))
        bill = BillingEvent.decode(row.event)
        if not found or bill.outcome == "worker_lost":
            continue
        ((body, left_nano, there_nano),) = found
        account = (bill.account, bill.currency)
        for event in _rest(bill, BillingEvent.decode(bytes(body)), int(left_nano)):
            before_nano = moved.get(account, 0)
            shown, moved_nano = _with_overdrawn(event, there_nano + before_nano)
            moved[account] = before_nano + moved_nano
            wanted.append(rows_of(shown))
    return wanted


def _rest(bill: BillingEvent, lost: BillingEvent, left_nano: int) -> list[BillingEvent]:
    """Return a bill's part that a checkpoint does not have; all of it where it has other parts.

    Before that what is left of the checkpoint's amount is taken back.
    """
    metadata = {**bill.metadata, "continues": bill.id}
    whole = replace(bill, request_id=continuation_of(bill.id), metadata=metadata)
    lines = _beyond(bill, lost)
    if lines is None:
        return [*([_correction(bill, lost, left_nano)] if left_nano > 0 else []), whole]
    counts = {name: max(getattr(bill, name) - getattr(lost, name), 0) for name in _COUNTS}
    if not lines and not any(counts.values()):
        return []
    amount = sum(int(line.amount_nano) for line in lines)
    return [
        replace(
            whole,
            lines=tuple(lines),
            amount_nano=str(amount),
            amount=decimal_string(amount),
            **counts,
        )
    ]


def _with_overdrawn(event: BillingEvent, available_nano: int) -> tuple[BillingEvent, int]:
    """Return an event with what it takes beyond the balance, and by how much it moves that."""
    amount_nano = int(event.amount_nano)
    if event.kind != "usage":
        return event, amount_nano
    overdrawn_nano = max(amount_nano - max(available_nano, 0), 0)
    return replace(event, overdrawn_nano=str(overdrawn_nano)), -amount_nano


def _beyond(bill: BillingEvent, lost: BillingEvent) -> list[EventLine] | None:
    """Return by how much a bill's lines exceed a checkpoint's; None where one does not."""
    before = {(line.meter, line.unit_price_nano): line.quantity for line in lost.lines}
    lines = []
    for line in bill.lines:
        quantity = line.quantity - before.pop((line.meter, line.unit_price_nano), 0)
        if quantity < 0:
            return None
        if quantity:
            amount = str(quantity * int(line.unit_price_nano))
            lines.append(replace(line, quantity=quantity, amount_nano=amount))
    return None if any(before.values()) else lines


def _correction(bill: BillingEvent, lost: BillingEvent, amount_nano: int) -> BillingEvent:
    return movement_event(
        _derived(bill.id, "corrects"),
        kind="correction",
        corrects=lost.id,
        account=lost.account,
        tier=lost.tier,
        amount_nano=amount_nano,
        currency=lost.currency,
        now=bill.settled_at,
        metadata={"operation": "credit", "note": _NOTE},
        source=lost.source,
    )


def _derived(request_id: str, what: str) -> str:
    """Return an id of the same time: all but the last group of it, which is by a digest."""
    return request_id[:24] + hashlib.sha256(f"{what} {request_id}".encode()).hexdigest()[:12]
