"""Bills that were kept, handed to the ledger; which of them it never takes is told with care."""

import asyncio

import msgspec

from inf_middleware.domain.events import BillingEvent
from inf_middleware.ports import Ledger

# One that fails is offered alone so many times more, and the ledger takes another after each: the
# first may fail because the ledger is away, the second then fails between two that are taken.
_TRIES_ALONE = 2


async def hand_over(ledger: Ledger, lines: list[bytes]) -> list[bytes]:
    """Return the lines that the ledger refuses while it takes others, or that are no bills.

    Raises:
        LedgerUnavailable: The ledger is away, from the beginning or since it took some.
    """
    events = {line: event for line in lines if (event := _event_of(line)) is not None}
    results = await asyncio.gather(
        *(ledger.settle(event) for event in events.values()), return_exceptions=True
    )
    refused = [line for line in lines if line not in events]
    failed = {}
    taken = None
    for (line, event), result in zip(events.items(), results, strict=True):
        if isinstance(result, BaseException):
            failed[line] = result
        else:
            taken = event
    for line, failure in failed.items():
        if taken is None:
            raise failure
        if not await _takes(ledger, events[line], taken):
            refused.append(line)
    return refused


async def _takes(ledger: Ledger, event: BillingEvent, taken: BillingEvent) -> bool:
    """Tell whether a ledger takes a bill that failed among others; False where it takes others."""
    for _ in range(_TRIES_ALONE):
        try:
            await ledger.settle(event)
        except Exception:  # whatever it is: the others are not to wait for this one
            await _take_another(ledger, taken)
        else:
            return True
    return False


async def _take_another(ledger: Ledger, taken: BillingEvent) -> None:
    """See that a ledger takes bills as they are: one that it has, once more."""
    await ledger.settle(taken)
    probe = getattr(ledger, "probe", None)
    if probe is not None:  # that something can be written, which for `taken` need not be
        await probe()


def _event_of(line: bytes) -> BillingEvent | None:
    try:
        return BillingEvent.decode(line)
    except msgspec.MsgspecError:
        return None
