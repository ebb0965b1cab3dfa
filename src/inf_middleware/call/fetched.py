"""Fetching an answer that was made later: it is billed when it is first seen whole."""

from starlette.types import ASGIApp, Receive, Scope, Send

from inf_middleware.call.answer import Answer
from inf_middleware.call.closing import to_the_end
from inf_middleware.call.deferred import deferred
from inf_middleware.call.observing import note_settlement
from inf_middleware.call.record import CALL_KEY, Call
from inf_middleware.call.settle import settle
from inf_middleware.domain.ids import uuid7
from inf_middleware.wire.usage import added


async def serve_fetched(
    app: ASGIApp, due: Call, scope: Scope, receive: Receive, send: Send
) -> None:
    """Serve a request that fetches the answer of an earlier call, and bill that."""
    parts, told = due.parts, due.observer
    now_ns = parts.now_ns()
    path = scope["path"]
    call = Call(uuid7(now_ns), now_ns, path, due.dialect, parts, due.metering, due.prices, told)
    call.request, call.model, call.billing = due.request, due.model, due.billing
    call.account, call.tier, call.key_id = due.account, due.tier, due.key_id
    call.input_tokens, call.input_exact = due.input_tokens, due.input_exact
    call.billed = added(usage for usage in (due.billed, due.usage) if usage is not None)
    call.look_up_price()

    async def settle_taken() -> None:
        settled = False
        try:
            settled = await settle(call)
        finally:
            if not settled:
                deferred.note(due)  # it could not be recorded: it is still to be billed

    async def settle_fetched(call: Call) -> bool:
        if not deferred.take(call):
            return True
        await to_the_end(settle_taken())  # nobody would settle it again
        return call.recorded or call.billing is None

    answer = Answer(call, scope, send, False, settle_fetched, ())
    try:
        await app({**scope, CALL_KEY: call}, receive, answer.send)
        await answer.finish()
    finally:
        if call.is_stream and not call.ended:  # what was fetched of a stream that was cut
            answer.read_what_came()
            await settle_fetched(call)
    if call.settled:
        note_settlement(call)
