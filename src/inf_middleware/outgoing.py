"""What of a request goes to the upstream: its path and query as they were written, and its body."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from urllib.parse import quote

import anyio
import httpx
from starlette.types import Receive, Scope


def path_of(scope: Scope) -> str:
    """Return the path of a request, without what the proxy is mounted under."""
    path: str = scope["path"]
    root = scope.get("root_path", "").rstrip("/")
    return path[len(root) :] if root and path.startswith(root + "/") else path


def target_of(scope: Scope) -> bytes:
    """Return path and query as the client wrote them, without what the proxy is mounted under."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    path = path.partition(b"?")[0]  # some servers leave the query in it
    root = scope.get("root_path", "").rstrip("/").encode()
    if root and path.startswith(root + b"/"):
        path = path[len(root) :]
    query = scope.get("query_string", b"")
    return path + b"?" + query if query else path


class ClientLeft(Exception):  # noqa: N818 - nobody is left to answer
    """The client left before its request was whole."""


class Upload(httpx.AsyncByteStream):
    """The request's body, piece by piece as it comes, and then the watch over the client."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._first = b""
        self._more = False
        self.done = asyncio.Event()

    async def begin(self) -> bool:
        """Wait for the first piece, which tells how the body is framed; False: nobody is there."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            return False
        self._first = bytes(message.get("body", b""))
        self._more = message.get("more_body", False)
        return True

    def framing(self, method: str, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the header that frames the body where the client's own does not."""
        if any(name == b"content-length" for name, _ in headers):
            return []
        if self._more:
            return [(b"transfer-encoding", b"chunked")]
        if self._first or method in ("POST", "PUT", "PATCH"):
            return [(b"content-length", b"%d" % len(self._first))]
        return []

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._first:
            yield self._first
        while self._more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            self._more = message.get("more_body", False)
            piece = message.get("body", b"")
            if piece:
                yield bytes(piece)
        self.done.set()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """End what is done within when the client leaves."""
        with anyio.CancelScope() as exchange:
            watcher = asyncio.ensure_future(self._watch(exchange))
            try:
                yield
            finally:
                watcher.cancel()

    async def _watch(self, exchange: anyio.CancelScope) -> None:
        await self.done.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        exchange.cancel()
