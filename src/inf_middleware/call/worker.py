"""The stack's one worker: carries a call through guard, who, read, admit, app, settle and close.

Where something opaque stands between two of ours each has a worker. The first to see a request
opens the call and puts it into a copy of the scope; a worker further in joins it with its parts;
the opener alone settles, once, shielded from cancellation.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

import anyio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inf_middleware.call.ahead import Ahead, ClientGone
from inf_middleware.call.answer import Answer
from inf_middleware.call.body import Replayed, as_message, begin_body, read_body, with_length
from inf_middleware.call.claim import KEY_HEADER, abandon, note_fingerprint
from inf_middleware.call.closing import to_the_end
from inf_middleware.call.deferred import deferred
from inf_middleware.call.fetched import serve_fetched
from inf_middleware.call.finish import close, give_up, try_close
from inf_middleware.call.join import join
from inf_middleware.call.observing import note_refusal
from inf_middleware.call.part import take_part
from inf_middleware.call.record import CALL_KEY, PARTS_KEY, STACKS_KEY, Call, Metering, Parts
from inf_middleware.call.refuse import Refuse, send_refusal
from inf_middleware.call.request import asking, is_read, may_be_json, understand
from inf_middleware.call.settle import settle
from inf_middleware.call.start import NAME
from inf_middleware.call.who import caller_of, known_caller
from inf_middleware.domain.errors import MiddlewareError
from inf_middleware.domain.ids import uuid7
from inf_middleware.domain.prices import Prices
from inf_middleware.domain.tiers import Tiers
from inf_middleware.domain.uris import may_lead_elsewhere
from inf_middleware.wire.answers import Header, limit_headers
from inf_middleware.wire.request import Request

# How long a shutdown waits for calls that were cancelled to be settled: servers that cancel do not
# wait themselves (uvicorn after `--timeout-graceful-shutdown`), and then end their process.
SHUTDOWN_WAIT_S = 5.0
_LOOK_EVERY_S = 0.01

# RFC 6455, section 7.4.1: an endpoint refuses for a reason of policy.
_POLICY_VIOLATION = 1008


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
        self._exempt = exempt
        self._websockets = websockets
        self._touch = touch
        self._around = around
        self._on_startup = on_startup
        self._on_shutdown = on_shutdown
        self._open_calls = 0  # that an app answers, or that are being closed

    def serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Return what serves one ASGI scope; `touch` is told of each call."""
        kind = scope["type"]
        if kind == "http":
            if self._exempt and self._is_exempt(scope["path"]):
                return self._app(self._shown(scope), receive, send)
            if scope["method"] != "POST" and not self._is_metered(scope):
                return self._pass(scope, receive, send)
            fresh = self._touch()
            if fresh is not None:
                return self._serve_after(fresh, scope, receive, send)
            if CALL_KEY in scope:
                return join(self._app, self._parts, scope, receive, send)
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
        if CALL_KEY in scope:
            await join(self._app, self._parts, scope, receive, send)
        else:
            await self._open(scope, receive, send)

    async def _open(self, scope: Scope, receive: Receive, send: Send) -> None:
        parts, metering, prices = self._parts, self._metering, self._prices
        now_ns = parts.now_ns()
        path = scope["path"]
        dialect, told, state = metering.dialects.of(path), parts.observer, scope.get("state")
        call = Call(uuid7(now_ns), now_ns, path, dialect, parts, metering, prices, told, state)
        inner: Scope = {**scope, CALL_KEY: call}
        message: Message | None = None
        try:
            # Before the body is read: an unknown caller shall not make us hold 8 MiB.
            headers = dict(scope["headers"])
            if parts.identifies:
                caller = known_caller(scope["headers"], headers, parts)
                call.account, call.tier, call.key_id = caller or await caller_of(inner, parts)
                call.named = parts.names_accounts
            if is_read(dialect, headers):
                message = await _read(call, headers, receive)
            else:
                message = await _look_into(call, headers, receive)
            if KEY_HEADER in headers:
                note_fingerprint(call)
            ahead = await take_part(call, parts, inner, receive)
            body = asking(call)
            if body is not None:
                inner, message = with_length(inner, len(body)), as_message(body)
        except (Refuse, ClientGone) as ended:
            await _end_unserved(call, ended, send)
            return
        except BaseException:
            await to_the_end(give_up(call))
            raise
        echoes = call.request is not None and call.request.echo  # it is looked for in the answer
        if call.input_tokens is not None and call.metering.is_given and call.billing and not echoes:
            call.body = call.input_texts = None  # counted, and looked at by all who have to
        answer = Answer(call, scope, send, call.asked, settle, _headers(call))
        receive = Replayed(call, message, ahead.receive if ahead is not None else receive)
        message = None  # it is the app's
        self._open_calls += 1
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
            if call.metering is not metering or call.prices is not prices:
                self._learn(call, metering, prices)
            if ahead is not None:
                ahead.close()
            try:
                if not try_close(call):
                    await (close(call) if call.settled else to_the_end(close(call)))
            finally:
                self._open_calls -= 1

    def _learn(self, call: Call, metering: Metering, prices: Prices) -> None:
        """Go by what a call was told further in."""
        if call.metering is not metering:  # else it may have begun before others were taken over
            self._metering = call.metering
        if call.prices is not prices:
            self._prices = call.prices

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass; it is read where it fetches an answer that is still to be billed."""
        due = None
        if scope["method"].upper() == "GET" and CALL_KEY not in scope:
            due = deferred.fetched_by(scope["path"])
        if due is None:
            await self._app(self._shown(scope), receive, send)
            return
        await serve_fetched(self._app, due, scope, receive, send)

    def _shown(self, scope: Scope) -> Scope:
        """Return a scope in which routes of ours find what stands around them."""
        return {**scope, STACKS_KEY: (*scope.get(STACKS_KEY, ()), self._around)}

    def _is_metered(self, scope: Scope) -> bool:
        """Tell whether a request asks for work, by a method that is not written as all do."""
        method = scope["method"].upper()  # some servers leave it as it was written
        return method in self._metering.dialects.of(scope["path"]).methods

    def _is_exempt(self, path: str) -> bool:
        is_named = any(fnmatchcase(path, pattern) for pattern in self._exempt)
        # A server behind us might find a model where a pattern was to name none.
        return is_named and not may_lead_elsewhere(path)

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

    async def _calls_ended(self) -> None:
        """Return when no call is open any more, or after a time."""
        with anyio.move_on_after(SHUTDOWN_WAIT_S):
            while self._open_calls:  # noqa: ASYNC110 - some may be of other event loops
                await anyio.sleep(_LOOK_EVERY_S)

    def _watching_lifespan(self, send: Send) -> Send:
        told = False

        async def watching(message: Message) -> None:
            nonlocal told
            kind = message["type"]
            if kind == "lifespan.startup.complete":
                try:
                    await self._on_startup()
                except MiddlewareError as error:
                    told = True
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    raise
            elif kind == "lifespan.startup.failed" and told:
                return  # the app's own words for what was raised here
            elif kind in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                await self._calls_ended()
                await self._on_shutdown()
            await send(message)

        return watching


async def _read(call: Call, headers: Mapping[bytes, bytes], receive: Receive) -> Message:
    declared = headers.get(b"content-length")
    message = await read_body(declared, receive, call.parts.body_bytes_max)
    understand(call, message.get("body", b""))
    return message


async def _look_into(call: Call, headers: Mapping[bytes, bytes], receive: Receive) -> Message:
    """Read a body that may be JSON though it is not said to be; else it passes as it comes."""
    message = await begin_body(receive)
    if may_be_json(message.get("body", b"")):
        return await _read(call, headers, Ahead(receive, message).receive)
    call.request, call.unread = Request(), True
    return message


async def _end_unserved(call: Call, ended: Refuse | ClientGone, send: Send) -> None:
    if isinstance(ended, Refuse):
        call.refused = True
        note_refusal(call, ended)
    await abandon(call)
    if isinstance(ended, Refuse):
        await send_refusal(call, ended, send)


def _headers(call: Call) -> list[Header]:
    request_id = call.id.encode()
    headers = [(NAME, request_id), (b"request-id", request_id)]
    if call.admission is not None:
        headers += limit_headers(call.admission.standings, call.dialect, call.parts.now_ns)
    return headers


async def _refuse_websocket(receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
