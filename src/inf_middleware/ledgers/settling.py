"""Settlements of calls, as steps for either database."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.claims import finish
from inf_middleware.ledgers.continuing import continued
from inf_middleware.ledgers.lots import spend
from inf_middleware.ledgers.rows import Rows, rows_of
from inf_middleware.ledgers.steps import Ask, Record, Steps

# A ledger without grants that expire, or without prepaid calls, is asked only this per commit.
_SOME_HOLD_OR_LOT = Ask(
    "SELECT EXISTS (SELECT 1 FROM hold), EXISTS (SELECT 1 FROM lot WHERE left_nano > 0)"
)

# Of a settlement that costs nothing.
_NO_POSTING = ("", "", "", 0, "")

# What a probe writes: a lone settlement changes some 20 pages of 4 KiB, each written whole.
PROBE_BYTES = 256 * 1024


def settle_all(rows: Sequence[Rows]) -> Steps[None]:
    """Write settlements, and end what their calls held; one that is there already stays.

    Of one that was ended at its checkpoint meanwhile what it used beyond that is written.
    """
    ((some_hold, some_lot),) = yield _SOME_HOLD_OR_LOT
    if not some_hold:
        yield from _write(rows, some_lot)
        return
    waiting: list[Rows] = []  # to be written together, in a third of the time
    charged: dict[tuple[str, str], int] = {}  # what those take of an account, at most
    for row in rows:
        held = yield Ask(
            "DELETE FROM hold WHERE request_id = ?"
            " RETURNING account, currency, amount_nano, credit_limit_nano",
            (row.request_id,),
        )
        _, debit, _, amount, currency = row.posting or _NO_POSTING
        taken_of, settled = (debit, currency), row
        if held:
            settled = replace(row, again=False) if row.again else row
            available = yield from _end_hold(*held[0])
            if amount > available - charged.get(taken_of, 0):
                # Perhaps more than there is, which is told when those before it are written.
                yield from _write(waiting, some_lot)
                waiting, charged = [], {}
                settled = yield from _overdrawn(row, *held[0])
        waiting.append(settled)
        charged[taken_of] = charged.get(taken_of, 0) + amount
    yield from _write(waiting, some_lot)


def write_probe(owner: str) -> Steps[None]:
    """Write as much as some settlements do, to be forgotten: whether the ledger can.

    Less would not do: a disk that is full still takes what fits into a page that is there.
    """
    yield Ask(
        "INSERT INTO reference (kind, reference, request_id, fingerprint)"
        " VALUES ('probe', ?, '', ?) ON CONFLICT (kind, reference)"
        " DO UPDATE SET fingerprint = excluded.fingerprint",
        (owner, "0" * PROBE_BYTES),
    )


def forget_probes() -> Steps[None]:
    """Forget what probes wrote, those of processes that are gone included."""
    yield Ask("DELETE FROM reference WHERE kind = 'probe'")


def is_recorded(request_id: str) -> Steps[bool]:
    """Tell whether a call's bill is there."""
    return bool((yield Ask("SELECT 1 FROM request WHERE request_id = ?", (request_id,))))


def _write(rows: Sequence[Rows], some_lot: bool) -> Steps[None]:
    if not rows:
        return
    spending = (yield from _new_charges_of_lots(rows)) if some_lot else []
    there = yield Record(rows)
    yield from finish(rows)
    for account, currency, amount_nano in spending:
        yield from spend(account, currency, amount_nano)
    if there:
        ids = {request_id for (request_id,) in there}
        yield from _write((yield from continued(rows, ids)), some_lot)


def _end_hold(account: str, currency: str, held_nano: int, credit_nano: int) -> Steps[int]:
    """Give a hold back to the balance; return what is available then."""
    left = yield Ask(
        "UPDATE balance SET held_nano = held_nano - ? WHERE account = ? AND currency = ?"
        " RETURNING balance_nano - held_nano",
        (held_nano, account, currency),
    )
    return int(left[0][0]) + credit_nano


def _overdrawn(
    row: Rows, account: str, currency: str, held_nano: int, credit_nano: int
) -> Steps[Rows]:
    """Return a settlement, whose hold has ended, with what it takes beyond the balance."""
    available = yield from _end_hold(account, currency, 0, credit_nano)
    amount = row.posting[3] if row.posting else 0
    short_before = max(held_nano - available, 0)
    overdrawn = max(amount - available, 0) - short_before
    if overdrawn <= 0:
        return row
    event = BillingEvent.decode(row.event)
    return rows_of(replace(event, overdrawn_nano=str(overdrawn)))


def _new_charges_of_lots(rows: Sequence[Rows]) -> Steps[list[tuple[str, str, int]]]:
    """Return what is newly charged to accounts that have grants which expire."""
    charges: dict[str, tuple[str, str, int]] = {}
    for row in rows:
        if row.posting is None:
            continue
        request_id, debit, _, amount_nano, currency = row.posting
        account = debit.removeprefix("account:")
        has: list[Any] = yield Ask(
            "SELECT 1 FROM lot WHERE account = ? AND left_nano > 0 LIMIT 1", (account,)
        )
        if has and not (yield Ask("SELECT 1 FROM request WHERE request_id = ?", (request_id,))):
            charges[request_id] = (account, currency, amount_nano)
    return list(charges.values())
