"""What a worker's parts do with a call before the app."""

from starlette.types import Receive, Scope

from inf_middleware.call.admission import admit, admit_in_turn, reserve, try_admit, try_reserve
from inf_middleware.call.ahead import Ahead
from inf_middleware.call.billable import check_billable
from inf_middleware.call.claim import take_claim
from inf_middleware.call.fit import refuse_misfit
from inf_middleware.call.hold import refuse_background, take_hold
from inf_middleware.call.record import Call, Parts


async def take_part(
    call: Call, parts: Parts, scope: Scope, receive: Receive, ahead: Ahead | None = None
) -> Ahead | None:
    """Do what is done before the app, as far as nobody has done it.

    Returns what has read ahead of the app, if anything had to.

    Raises:
        Refuse: One of the parts refuses.
        ClientGone: The client left while it waited.
    """
    billing = parts.billing if call.billing is None else None
    if billing is not None:
        call.prices = parts.prices
    call.look_up_price()
    if billing is not None:
        checking = check_billable(call, billing)
        if checking is not None:
            await checking
        if billing.holds is not None:
            refuse_background(call, billing)
        call.billing = billing
        if call.fingerprint is not None:
            await take_claim(call, scope["headers"])
    limiting = parts.limiting if call.limiting is None else None
    if limiting is not None and not try_reserve(call, limiting):
        await reserve(call, limiting)  # what no level holds is said of the level
    checking = refuse_misfit(call, parts)
    if checking is not None:
        await checking
    try:
        if limiting is not None and not try_admit(call, limiting):
            turn = await admit(call, limiting)
            if turn is not None:
                ahead = ahead or Ahead(receive)
                await admit_in_turn(call, limiting, ahead, turn)
        if call.billing is not None and call.billing.holds is not None:
            await take_hold(call)
    except BaseException:
        if ahead is not None:
            ahead.close()  # nobody receives any more
        raise
    return ahead
