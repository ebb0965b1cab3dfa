"""Telling who watches what became of a call: nothing is done here where nobody does."""

from typing import Any

from inf_middleware.call.bill import outcome_of
from inf_middleware.call.record import Call, log
from inf_middleware.call.refuse import Refuse
from inf_middleware.domain.observations import RefusedCall, SettledCall
from inf_middleware.domain.usage import Usage


def note_refusal(call: Call, refuse: Refuse) -> None:
    """Tell of a call that is refused."""
    if call.observer is None:
        return
    try:
        call.observer.refused(
            RefusedCall(
                **_facts(call),
                status=refuse.status,
                code=refuse.code,
            )
        )
    except Exception:  # who watches must not stop what is watched
        log.exception("the refusal of call %s could not be told", call.id)


def note_settlement(call: Call) -> None:
    """Tell of a call that was served and is settled."""
    observer = call.observer
    if observer is None or not observer.listens():
        return
    event, first_ns = call.event, call.first_output_ns
    try:
        observer.settled(
            SettledCall(
                **_facts(call),
                usage=call.usage or Usage(),
                amount_nano=int(event.amount_nano) if event else None,
                currency=event.currency if event else None,
                outcome=event.outcome if event else outcome_of(call),
                recorded=call.recorded or call.billing is None,
                would_refuse=call.would_refuse,
                duration_s=_since(call, call.parts.now_ns()),
                first_output_s=None if first_ns is None else _since(call, first_ns),
            )
        )
    except Exception:  # who watches must not stop what is watched
        log.exception("the settlement of call %s could not be told", call.id)


def _facts(call: Call) -> dict[str, Any]:
    """Return what is told of every call, served or refused."""
    return {
        "call_id": call.id,
        "endpoint": call.endpoint,
        "dialect": call.dialect.name,
        "model": call.model,
        "listed_model": _listed_model(call),
        "account": call.account.id if call.account else None,
        "tier": call.tier.name if call.tier else None,
    }


def _listed_model(call: Call) -> str | None:
    """Return what of a model's name the operator has written down: callers may write anything."""
    model = call.model
    if model is None:
        return None
    if call.billing is not None and call.billing.serves and model in call.billing.serves:
        return model
    found = call.price_list.find(model)
    return found.price.model if found else None


def _since(call: Call, moment_ns: int) -> float:
    return max(moment_ns - call.started_ns, 0) / 1e9  # clocks of hosts are set back at times
