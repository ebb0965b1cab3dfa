"""The last station of a call: what is still open is ended, and those who listen are told."""

import anyio

from inf_middleware.call.claim import abandon
from inf_middleware.call.drain import drains
from inf_middleware.call.observing import note_settlement
from inf_middleware.call.record import Call, CurrentCall, log
from inf_middleware.call.settle import release, settle


async def give_up(call: Call) -> None:
    """End what a call has taken that is not served."""
    await release(call, 0)
    await abandon(call)


async def close(call: Call) -> None:
    """End whatever of a call is still open, once, and tell who wants to hear of it."""
    if call.settled and not call.refused and call.metering.on_usage is None:
        if call.observer is not None:  # as nearly always: it waits for nobody
            note_settlement(call)
        if call.draining:
            drains.end(call)
    else:
        with anyio.CancelScope(shield=True):
            await _finish(call)


async def _finish(call: Call) -> None:
    try:
        if call.refused:
            await give_up(call)  # admitted further out, refused further in
        elif not call.settled:
            await settle(call)
        if call.observer is not None and call.settled:
            note_settlement(call)
        if call.metering.on_usage is not None and call.usage is not None and not call.refused:
            heard = call.metering.on_usage(call.usage, CurrentCall(call))
            if heard is not None:
                await heard
    except Exception:  # the app's own exception, if any, must go on
        log.exception("call %s could not be closed", call.id)
    finally:
        drains.end(call)
