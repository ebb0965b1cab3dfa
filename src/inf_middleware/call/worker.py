"""The stack's one worker: carries a call through guard, who, read, admit, app, settle and close.

Where something opaque stands between two of ours each has a worker. The first to see a request
opens the call and puts it into a copy of the scope; a worker further in joins it with its parts;
the opener alone settles, once, shielded from cancellation.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from fnmatch import fnmatchcase

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inf_middleware.call.admission import admit, reserve, try_admit, try_reserve
from inf_middleware.call.ahead import Ahead, ClientGone
from inf_middleware.call.answer import Answer, Header
from inf_middleware.call.billable import check_ledger, check_model
from inf_middleware.call.body import as_message, read_body, replayed, with_length
from inf_middleware.call.claim import KEY_HEADER, abandon, note_fingerprint, take_claim
from inf_middleware.call.closing import to_the_end
from inf_middleware.call.deferred import deferred
from inf_middleware.call.fetched import serve_fetched
from inf_middleware.call.finish import close, give_up, try_close
from inf_middleware.call.fit import refuse_misfit
from inf_middleware.call.hold import refuse_background, take_hold
from inf_middleware.call.observing import note_refusal
from inf_middleware.call.record import (
    CALL_KEY,
    PARTS_KEY,
    STACKS_KEY,
    Call,
    Parts,
)
from inf_middleware.call.refuse import Refuse, send_refusal
from inf_middleware.call.request import asking, is_read, understand
from inf_middleware.call.settle import settle
from inf_middleware.call.start import NAME
from inf_middleware.call.who import caller_of, known_caller
from inf_middleware.domain.ids import uuid7
from inf_middleware.domain.prices import Prices
from inf_middleware.domain.tiers import Tiers
from inf_middleware.wire.dialect import Request

# RFC 6455, section 7.4.1: an endpoint refuses for a reason of policy.
_POLICY_VIOLATION = 1008

# A body that asks for usage is longer than the client's, by less than this.
_ASKING_BYTES = 1024


class Worker:
    """Wraps `receive` and `send` once for all middlewares of a stack."""

    def __init__(
        self,
        app: ASGIApp,
        parts: Parts,
        *,
        exempt: tuple[str, ...],
        websockets: str,
        touch: Callable[[], Awaitable[None] | None],
        around: object,
        on_startup: Callable[[], Awaitable[None]],
        on_shutdown: Callable[[], Awaitable[None]],
    ) -> None:
        self._app = app
        self._parts = parts
        # Of a TokenMeter and a CostLedger behind something opaque, once they are known: what they
        # say is in force before they are reached.
        self._metering = parts.metering
        self._prices = parts.prices
        # Whether it is its concern who calls.
        self._identifies = bool(parts.names_accounts or parts.limiting or parts.billing)
        self._exempt = exempt
        self._websockets = websockets
        self._touch = touch
        self._around = around
        self._on_startup = on_startup
        self._on_shutdown = on_shutdown

    def serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return what serves one ASGI scope; `touch` is told of each call."""
        kind = scope["type"]
        if kind == "http":
            if self._exempt and self._is_exempt(scope["path"]):
                return self._app(self._shown(scope), receive, send)
            if scope["method"] != "POST":
                return self._pass(scope, receive, send)
            fresh = self._touch()
            if fresh is not None:
                return self._serve_after(fresh, scope, receive, send)
            if CALL_KEY in scope:
                return self._join(scope, receive, send)
            return self._open(scope, receive, send)
        if kind == "websocket" and self._refuses_websocket(scope):
            return _refuse_websocket(receive, send)
        if kind == "lifespan":
            return self._app(self._telling(scope), receive, self._watching_lifespan(send))
        return self._app(scope, receive, send)

    def take_over(self, tiers: Tiers, prices: Prices) -> None:
        """Go by other levels and prices from the next call on; those that run keep theirs."""
        if self._prices is self._parts.prices:  # else they are those of a CostLedger further in
            self._prices = prices
        self._parts = replace(self._parts, tiers=tiers, prices=prices)

    async def _serve_after(
        self, fresh: Awaitable[None], scope: Scope, receive: Receive, send: Send
    ) -> None:
        await fresh
        await (self._join if CALL_KEY in scope else self._open)(scope, receive, send)

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts, metering, prices = self._parts, self._metering, self._prices
        now_ns = parts.now_ns()
        path = scope["path"]
        dialect = metering.dialects.of(path)
        told, state = parts.observer, scope.get("state")
        call = Call(uuid7(now_ns), now_ns, path, dialect, parts, metering, prices, told, state)
        inner: Scope = dict(scope)
        inner[CALL_KEY] = call
        message: Message | None = None
        try:
            # Before the body is read: an unknown caller shall not make us hold 8 MiB.
            headers = dict(scope["headers"])
            if self._identifies:
                caller = known_caller(scope["headers"], headers, parts)
                call.account, call.tier, call.key_id = caller or await caller_of(inner, parts)
                call.named = parts.names_accounts
            if is_read(dialect, headers):
                declared = headers.get(b"content-length")
                message = await read_body(declared, receive, parts.body_bytes_max)
                understand(call, message.get("body", b""))
            else:
                call.request, call.unread = Request(), True
            if KEY_HEADER in headers:
                note_fingerprint(call)
            ahead = await self._take_part(call, inner, receive)
            body = asking(call)
            if body is not None:
                inner, message = with_length(inner, len(body)), as_message(body)
        except Refuse as refuse:
            call.refused = True
            if call.observer is not None:
                note_refusal(call, refuse)
            await abandon(call)
            await send_refusal(call, refuse, send)
            return
        except ClientGone:
            await abandon(call)
            return
        except BaseException:
            await to_the_end(give_up(call))
            raise
        if call.input_tokens is not None and call.metering.is_given:
            call.body = call.input_texts = None  # counted: they are not needed any more
        answer = Answer(call, send, call.asked, settle, _headers(call))
        receive = replayed(call, message, ahead.receive if ahead is not None else receive)
        message = None  # it is the app's
        try:
            await self._app(inner, receive, answer.send)
            if not answer.is_complete:
                await answer.finish()
        except BaseException as error:
            call.failure = error
            answer.read_what_came()
            if not (call.exhausted and isinstance(error, Exception)):  # that is how it is stopped
                raise
        finally:
            # It may have begun before others were taken over.
            if call.metering is not metering:
                self._metering = call.metering
            if call.prices is not prices:
                self._prices = call.prices
            if ahead is not None:
                ahead.close()
            if not try_close(call):
                await (close(call) if call.settled else to_the_end(close(call)))

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass; it is read where it fetches an answer that is still to be billed."""
        due = None
        if scope["method"] == "GET" and CALL_KEY not in scope:
            due = deferred.fetched_by(scope["path"])
        if due is None:
            await self._app(self._shown(scope), receive, send)
            return
        await serve_fetched(self._app, due, scope, receive, send)

    def _shown(self, scope: Scope) -> Scope:
        """Return a scope in which routes of ours find what stands around them."""
        return {**scope, STACKS_KEY: (*scope.get(STACKS_KEY, ()), self._around)}

    async def _join(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts, call = self._parts, scope[CALL_KEY]
        asked, admission = call.asked, call.admission
        call.observer = call.observer or parts.observer
        # Past the body that the opener replays, so that a client is seen to leave.
        ahead = Ahead(receive, None if call.unread else await receive())
        try:
            body = self._take_over_metering(call)
            if body is not None:
                limit = parts.body_bytes_max + _ASKING_BYTES
                await read_body(None, ahead.receive, limit)
                scope = with_length(scope, len(body))
            names = parts.names_accounts and not call.named
            if self._identifies and (call.account is None or names):
                sent = scope["headers"]
                caller = known_caller(sent, dict(sent), parts)
                call.account, call.tier, call.key_id = caller or await caller_of(scope, parts)
                call.named = parts.names_accounts
            await self._take_part(call, scope, receive, ahead)
        except Refuse as refuse:
            call.refused = True
            if call.observer is not None:
                note_refusal(call, refuse)
            await send_refusal(call, refuse, send)
            return
        except ClientGone:
            call.refused = True  # it was not admitted: there is nothing to bill
            return
        strip = call.asked if call.asked != asked else False
        headers: list[Header] = []
        if call.admission is not None and call.admission is not admission:
            headers = call.limit_headers(call.admission.standings)
        answer = Answer(call, send, strip, None, headers)
        inner = ahead.receive if body is None else replayed(call, as_message(body), ahead.receive)
        try:
            await self._app(scope, inner, answer.send)
        finally:
            answer.read_what_came()
            ahead.close()

    def _take_over_metering(self, call: Call) -> bytes | None:
        """Let the stack's own TokenMeter say how to meter; return another body for the app."""
        metering = self._parts.metering
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

    async def _take_part(
        self, call: Call, scope: Scope, receive: Receive, ahead: Ahead | None = None
    ) -> Ahead | None:
        """Do what this worker's parts do before the app, as far as nobody has done it.

        Returns what has read ahead of the app, if anything had to.
        """
        parts = self._parts
        billing = parts.billing if call.billing is None else None
        if billing is not None:
            call.prices = parts.prices
        call.look_up_price()
        if billing is not None:
            check_model(call, billing)
            checking = check_ledger(billing)
            if checking is not None:
                await checking
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
        if limiting is not None and not try_admit(call, limiting):
            ahead = ahead or Ahead(receive)
            await admit(call, limiting, ahead)
        if call.billing is not None and call.billing.holds is not None:
            await take_hold(call)
        return ahead

    def _is_exempt(self, path: str) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in self._exempt)

    def _refuses_websocket(self, scope: Scope) -> bool:
        return self._websockets == "refuse" and not self._is_exempt(scope["path"])

    def _telling(self, scope: Scope) -> Scope:
        """Tell those further out how this stack meters and prices; hear it from those further in.

        Of two of a kind the first that a call meets takes part in it, and is heard first.
        """
        tell = scope.get(PARTS_KEY)
        if tell is not None:
            tell(self._parts)
        billing = self._parts.billing

        def hear(parts: Parts) -> None:
            nonlocal billing
            if parts.metering.is_given and not self._metering.is_given:
                self._metering = parts.metering
            if billing is None and parts.billing is not None:
                billing, self._prices = parts.billing, parts.prices
            if tell is not None:
                tell(parts)

        return {**scope, PARTS_KEY: hear}

    def _watching_lifespan(self, send: Send) -> Send:
        async def watching(message: Message) -> None:
            kind = message["type"]
            if kind == "lifespan.startup.complete":
                await self._on_startup()
            elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self._on_shutdown()
            await send(message)

        return watching


def _headers(call: Call) -> list[Header]:
    request_id = call.id.encode()
    headers = [(NAME, request_id), (b"request-id", request_id)]
    if call.admission is not None:
        headers += call.limit_headers(call.admission.standings)
    return headers


async def _refuse_websocket(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
