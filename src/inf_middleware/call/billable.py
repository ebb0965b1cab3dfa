"""Whether a call can be billed at all: by its model, and by the ledger's health."""

from collections.abc import Awaitable

from inf_middleware.call.record import Billing, Call
from inf_middleware.call.refuse import Refuse
from inf_middleware.wire import answers


def check_billable(call: Call, billing: Billing) -> Awaitable[None] | None:
    """Refuse a call whose model is not served, or not sold.

    Returns what refuses, when it is awaited, a call that could not be recorded (503): the ledger
    lost a bill, and cannot be written yet. None where all is well.

    Raises:
        Refuse: The model is one of these (404).
    """
    if billing.serves is not None and call.model not in billing.serves:
        raise _model_not_found(call, "this server does not serve it")
    if call.found is None and billing.unpriced == "refuse":
        raise _model_not_found(
            call,
            "it has no price here (operators: add it to `prices`, or set `unpriced`)",
        )
    return _check_ledger(call, billing) if billing.health.is_down or billing.lost.ids else None


async def _check_ledger(call: Call, billing: Billing) -> None:
    if billing.health.is_down and not await billing.health.ready():
        raise Refuse(
            503,
            "ledger_unavailable",
            "Calls cannot be recorded just now, and none is served; try again shortly.",
            headers=answers.retry_headers(1.0),
        )
    if billing.holds is not None or call.fingerprint is not None:
        await billing.lost.end()
    else:
        billing.lost.begin()  # what others hold or claim is in nobody's way here


def _model_not_found(call: Call, why: str) -> Refuse:
    name = f"The model {call.model!r}" if call.model else "A request without a model"
    return Refuse(404, "model_not_found", f"{name} cannot be used: {why}.", param="model")
