"""A small streaming reverse proxy: for servers that take no middleware.

    INF_MIDDLEWARE_UPSTREAM=http://localhost:11434 uvicorn inf_middleware.proxy:app

`app` is a `Proxy` in a `Gate`; one process holds the limits exactly, without Redis.
"""

import asyncio
import contextlib
import logging
import os
import time
from fnmatch import fnmatchcase
from typing import Any

import anyio
import h11
import httpx
from starlette.types import Receive, Scope, Send

from inf_middleware.call.record import CALL_KEY
from inf_middleware.domain.ids import uuid7
from inf_middleware.domain.uris import may_lead_elsewhere
from inf_middleware.gate import Gate
from inf_middleware.outgoing import ClientLeft, Upload, path_of, target_of
from inf_middleware.settings import Sources
from inf_middleware.upstream import Upstream
from inf_middleware.wire import answers
from inf_middleware.wire.dialects import Dialects
from inf_middleware.wire.hops import passed_through, request_headers, response_headers, with_key

log = logging.getLogger("inf_middleware.proxy")

# Each request in progress takes two descriptors, and 1,024 of them is a usual bound of a process.
CONNECTIONS_MAX = 480

# Of those, how many may be for requests that nobody pays for: anybody may send them, and make them
# last, and those who pay still find the other half.
UNMETERED_MAX = 240

# As many as a burst leaves behind; the rest is closed.
IDLE_CONNECTIONS_MAX = 100

# uvicorn, llama.cpp and Node close idle connections after 5 s: ours go before, so that no request
# is sent into one that is being closed.
IDLE_EXPIRY_S = 4.0

# How long a request waits for one of the connections: then the proxy is full, and says so.
POOL_TIMEOUT_S = 5.0

# RFC 6455, section 7.4.1: an endpoint refuses for a reason of policy.
_POLICY_VIOLATION = 1008

_FULL = (503, "server_busy", "The proxy is full; try again shortly.")


class Proxy:
    """Forwards requests to an upstream, and its answers back, each piece as it comes.

    Holds nothing back and decodes nothing; follows no redirects and keeps no cookies. A client that
    leaves ends the upstream's request at once; an upstream that breaks off breaks the answer off.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self._url = httpx.URL(upstream.url)
        self._prefix = self._url.raw_path.rstrip(b"/")
        # Tells this proxy from others of its kind in `via`: a loop is seen.
        self._pseudonym = b"inf-middleware-" + os.urandom(4).hex().encode()
        self._dialects = Dialects()
        self._unmetered = 0  # requests in progress that nobody pays for
        self._transport: httpx.AsyncHTTPTransport | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        kind = scope["type"]
        if kind == "http":
            await self._serve(scope, receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        elif kind == "lifespan":
            await self._live(receive, send)

    async def aclose(self) -> None:
        """Close the connections."""
        transport, self._transport = self._transport, None
        if transport is not None and self._loop is asyncio.get_running_loop():
            await transport.aclose()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused = self._refused(scope)
        if refused is not None:
            await self._fail(scope, send, *refused)
            return
        unmetered = CALL_KEY not in scope
        self._unmetered += unmetered
        try:
            body = Upload(receive)
            if await body.begin():
                with body.watched():
                    await self._exchange(scope, body, send)
        finally:
            self._unmetered -= unmetered

    async def _exchange(self, scope: Scope, body: Upload, send: Send) -> None:
        response = None
        try:
            response = await self._ask(scope, body)
        except ClientLeft:
            return
        except (httpx.HTTPError, h11.LocalProtocolError, TimeoutError) as error:
            await self._fail(scope, send, *self._failure(error))
            return
        finally:
            body.done.set()  # whatever is left of it, nobody will read it
        try:
            if response.status_code < 200:  # 101: the upstream speaks what was not asked for
                why = f"The model server answered {response.status_code}, which was not asked for."
                await self._fail(scope, send, 502, "upstream_error", why)
                return
            with contextlib.suppress(OSError):  # the client has left
                await self._answer(response, send)
        finally:
            with anyio.CancelScope(shield=True):
                await response.aclose()

    async def _ask(self, scope: Scope, body: Upload) -> httpx.Response:
        upstream = self.upstream
        client = scope.get("client")
        method = scope["method"].upper()  # as the gate took it, however it was written
        headers = request_headers(
            scope["headers"],
            host=self._url.netloc,
            scheme=scope.get("scheme", "http"),
            client=client[0] if client else None,
            pseudonym=self._pseudonym,
            http_version=scope.get("http_version", "1.1"),
        )
        if upstream.key is not None:
            headers = with_key(headers, upstream.key)
        request = httpx.Request(
            method,
            self._url,
            headers=[*headers, *body.framing(method, headers)],
            stream=body,
            extensions={
                # The path as the client wrote it, escapes included.
                "target": self._prefix + target_of(scope),
                "timeout": {
                    "connect": upstream.connect_timeout_s,
                    "pool": POOL_TIMEOUT_S,
                    "write": upstream.write_timeout_s,
                },
            },
        )
        async with asyncio.timeout(upstream.first_byte_timeout_s):
            return await self._open().handle_async_request(request)

    async def _answer(self, response: httpx.Response, send: Send) -> None:
        status = response.status_code
        headers = response_headers(response.headers.raw, status)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        assert isinstance(response.stream, httpx.AsyncByteStream)
        pieces = aiter(response.stream)
        while True:
            try:
                async with asyncio.timeout(self.upstream.chunk_timeout_s):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                break
            except (httpx.HTTPError, TimeoutError) as error:
                # Without the end of the body: the server breaks the connection off, and the client
                # sees what it would have seen of the upstream.
                log.warning("the upstream broke off an answer: %s", _shown(error))
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _refused(self, scope: Scope) -> tuple[int, str, str] | None:
        if CALL_KEY not in scope and self._unmetered >= UNMETERED_MAX:
            return _FULL
        path = path_of(scope)
        if passed_through(scope["headers"], self._pseudonym):
            return 502, "upstream_error", "The proxy's upstream leads back to the proxy itself."
        if scope["method"].upper() == "CONNECT":
            return 405, "method_not_allowed", "This proxy opens no tunnels."
        if self.upstream.paths != ("*",):
            allowed = any(fnmatchcase(path, pattern) for pattern in self.upstream.paths)
            if not allowed or may_lead_elsewhere(path):
                return 404, "not_found", f"{scope['method']} {path} is not served here."
        target = target_of(scope)
        if b"#" in target:  # which servers take off, and with it what is metered
            return 400, "invalid_request", "A path has no fragment; send it without."
        if not target.startswith(b"/") and target != b"*":  # by it the upstream might be another
            return 400, "invalid_request", "A request names a path, and no server before it."
        return None

    def _failure(self, error: Exception) -> tuple[int, str, str]:
        """Say what went wrong before the answer began; where the upstream is stays in the log."""
        if isinstance(error, httpx.PoolTimeout):
            return _FULL
        # The latter where a server lost a body that it said would come.
        if isinstance(error, httpx.LocalProtocolError | h11.LocalProtocolError):
            return 400, "invalid_request", f"The request cannot be forwarded: {error}"
        log.warning("%s cannot be asked: %s", self.upstream.url, _shown(error))
        if isinstance(error, httpx.TimeoutException | TimeoutError):
            return 504, "upstream_timeout", "The model server did not answer in time."
        if isinstance(error, httpx.ConnectError):
            return 502, "upstream_unavailable", "The model server cannot be reached."
        return 502, "upstream_error", "The model server broke off before it answered."

    async def _fail(self, scope: Scope, send: Send, status: int, code: str, message: str) -> None:
        call = scope.get(CALL_KEY)
        path = scope["path"]
        dialect = self._dialects.of(path) if call is None else call.dialect
        status, headers, body = answers.error_response(
            dialect,
            status=status,
            code=code,
            message=message,
            request_id=uuid7(time.time_ns()) if call is None else call.id,
            headers=answers.retry_headers(1.0) if status == 503 else [],
        )
        if call is not None:  # the gate names the call itself
            named = (b"x-request-id", b"request-id")
            headers = [header for header in headers if header[0] not in named]
        with contextlib.suppress(OSError):  # the client has left
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.shutdown":
                await self.aclose()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    def _open(self) -> httpx.AsyncHTTPTransport:
        loop = asyncio.get_running_loop()
        if self._transport is None or self._loop is not loop:
            self._loop = loop
            # The transport and not a client: that would decode, keep cookies, and add headers.
            self._transport = httpx.AsyncHTTPTransport(
                verify=self.upstream.verification(),
                limits=httpx.Limits(
                    max_connections=CONNECTIONS_MAX,
                    max_keepalive_connections=IDLE_CONNECTIONS_MAX,
                    keepalive_expiry=IDLE_EXPIRY_S,
                ),
            )
        return self._transport


def _shown(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()


def app_from(**options: Any) -> Gate:
    """Build the proxy in its gate; `options` of the gate go before what the settings say.

    INF_MIDDLEWARE_UPSTREAM is the upstream's URL; INF_MIDDLEWARE_CONFIG names the settings file,
    whose `[upstream]` says more of it.

    Raises:
        ConfigError: There is no upstream, or something given cannot hold.
    """
    return Gate(Proxy(Sources().upstream()), **options)


def __getattr__(name: str) -> Any:
    # Built when a server asks for it: importing this module asks for no environment.
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    built = globals()["app"] = app_from()
    return built
