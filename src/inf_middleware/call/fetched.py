"""Fetching an answer that was made later: it is billed when it is first seen whole."""

from starlette.types import ASGIApp, Receive, Scope, Send

from inf_middleware.call.answer import Answer
from inf_middleware.call.closing import to_the_end
from inf_middleware.call.deferred import deferred
from inf_middleware.call.drain import drains
from inf_middleware.call.observing import note_settlement
from inf_middleware.call.record import CALL_KEY, Call
from inf_middleware.call.settle import settle
from inf_middleware.domain.ids import uuid7
from inf_middleware.domain.usage import Usage
from inf_middleware.wire.reader import AnswerReader
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
    _note_what_is_billed(call, due)
    call.look_up_price()

    async def settle_taken(taken: Call) -> None:
        settled = False
        try:
            settled = await settle(call)
        finally:
            if not settled:  # it could not be recorded: it is still to be billed
                deferred.remove(call)
                deferred.note(taken)

    async def settle_fetched(call: Call) -> bool:
        _name(call, due)
        taken = deferred.take(call, due)
        if taken is None:
            return True
        if taken is not due:
            _note_what_is_billed(call, taken)
        await to_the_end(settle_taken(taken))  # nobody would settle it again
        return call.recorded or call.billing is None

    answer = Answer(call, scope, send, False, settle_fetched, ())
    try:
        await app({**scope, CALL_KEY: call}, receive, answer.send)
        await answer.finish()
    finally:
        try:
            if call.is_stream and not call.ended:  # what was fetched of a stream that was cut
                answer.read_what_came()
                await settle_fetched(call)
        finally:
            drains.end(call)
    if call.settled:
        note_settlement(call)


def _note_what_is_billed(call: Call, due: Call) -> None:
    """Note on a call what of the answer that it fetches is on earlier bills."""
    call.billed, call.billed_to = due.billed or Usage(), due.billed_to
    if due.usage is None or not (due.recorded or due.billing is None):
        return
    call.billed = added((call.billed, due.usage))
    outline = due.reader.outline if isinstance(due.reader, AnswerReader) else None
    # What begins later leaves a gap, the events of which are on no bill.
    if outline is not None and outline.first_number <= due.billed_to + 1:
        call.billed_to = max(due.billed_to, outline.last_number)


def _name(call: Call, due: Call) -> None:
    """Name an answer that is the rest of a stream, of which only the beginning has its id."""
    reader = call.reader
    if isinstance(reader, AnswerReader) and reader.response_id is None and due.reader is not None:
        reader.response_id = due.reader.response_id
