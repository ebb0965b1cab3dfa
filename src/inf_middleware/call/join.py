"""A worker further in joins a call that another one has opened: it adds its parts."""

from starlette.types import ASGIApp, Receive, Scope, Send

from inf_middleware.call.ahead import Ahead, ClientGone
from inf_middleware.call.answer import Answer
from inf_middleware.call.body import Replayed, as_message, read_body, with_length
from inf_middleware.call.observing import note_refusal
from inf_middleware.call.part import take_part
from inf_middleware.call.record import CALL_KEY, Call, Parts
from inf_middleware.call.refuse import Refuse, send_refusal
from inf_middleware.call.request import asking, understand
from inf_middleware.call.who import caller_of, known_caller
from inf_middleware.wire.answers import Header, limit_headers

# A body that asks for usage is longer than the client's, by less than this.
_ASKING_BYTES = 1024


async def join(app: ASGIApp, parts: Parts, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a request whose call is open, with these parts; its opener settles and closes it."""
    call: Call = scope[CALL_KEY]
    asked, admission = call.asked, call.admission
    call.observer = call.observer or parts.observer
    # Past the body that the opener replays, so that a client is seen to leave.
    ahead = Ahead(receive, None if call.unread else await receive())
    try:
        body = _take_over_metering(call, parts)
        if body is not None:
            limit = parts.body_bytes_max + _ASKING_BYTES
            await read_body(None, ahead.receive, limit)
            scope = with_length(scope, len(body))
        names = parts.names_accounts and not call.named
        if parts.identifies and (call.account is None or names):
            sent = scope["headers"]
            caller = known_caller(sent, dict(sent), parts)
            call.account, call.tier, call.key_id = caller or await caller_of(scope, parts)
            call.named = parts.names_accounts
        await take_part(call, parts, scope, receive, ahead)
    except Refuse as refuse:
        call.refused = True
        note_refusal(call, refuse)
        await send_refusal(call, refuse, send)
        return
    except ClientGone:
        call.refused = True  # it was not admitted: there is nothing to bill
        return
    strip = call.asked if call.asked != asked else False
    headers: list[Header] = []
    if call.admission is not None and call.admission is not admission:
        headers = limit_headers(call.admission.standings, call.dialect, call.parts.now_ns)
    answer = Answer(call, scope, send, strip, None, headers)
    inner = ahead.receive if body is None else Replayed(call, as_message(body), ahead.receive)
    try:
        await app(scope, inner, answer.send)
    finally:
        answer.read_what_came()
        ahead.close()


def _take_over_metering(call: Call, parts: Parts) -> bytes | None:
    """Let the stack's own TokenMeter say how to meter; return another body for the app."""
    metering = parts.metering
    if call.metering.is_given or not metering.is_given:
        return None
    dialect = metering.dialects.of(call.endpoint)
    if dialect is not call.metering.dialects.of(call.endpoint):
        call.dialect = dialect
        if call.body is not None:
            understand(call, call.body)
    call.metering = metering
    call.input_tokens = call.input_texts = None
    call.input_exact = True
    call.input_reserved = None
    asked, call.asked = call.asked, False
    body = asking(call)
    return None if call.asked == asked else body or call.body
