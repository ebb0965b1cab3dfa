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


def try_close(call: Call) -> bool:
    """Close a call for which nothing more is waited, as nearly all; False where `close` has to."""
    if not call.settled or call.refused or call.metering.on_usage is not None:
        return False
    if call.observer is not None:
        note_settlement(call)
    if call.draining:
        drains.end(call)
    return True


async def close(call: Call) -> None:
    """End whatever of a call is still open, once, and tell who wants to hear of it."""
    with anyio.CancelScope(shield=True):
        try:
            if call.refused:
                await give_up(call)  # admitted further out, refused further in
            elif not call.settled:
                await settle(call)
            if call.settled:
                note_settlement(call)
            if call.metering.on_usage is not None and call.usage is not None and not call.refused:
                heard = call.metering.on_usage(call.usage, CurrentCall(call))
                if heard is not None:
                    await heard
        except Exception:  # the app's own exception, if any, must go on
            log.exception("call %s could not be closed", call.id)
        finally:
            drains.end(call)
