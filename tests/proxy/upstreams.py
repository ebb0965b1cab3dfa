"""Upstreams that say exactly what they are told to, and raw requests to them or to a proxy."""

import asyncio
import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any, Self

from tests.apps import completion, delta, event, read_all, usage_of
from tests.servers import serving

ANSWER = json.dumps(completion("Hello there.", usage=usage_of(7, 3))).encode()
SSE = b"".join([*(event(delta(text)) for text in ("你", "好", " there")), event("[DONE]")])
MEGABYTE = bytes(range(256)) * 4096


class Upstream:
    """A server of many ways, which remembers what it was sent and whether it was left."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.stopped = threading.Event()  # a stream of it was ended from outside
        self.go_on = threading.Event()  # what it waits for before it says the rest
        self.begun = threading.Event()  # the first piece of a request has come

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        first = await receive()
        self.begun.set()
        body = first.get("body", b"") + (await read_all(receive) if first["more_body"] else b"")
        self.seen.append(
            {
                "client": scope["client"],
                "method": scope["method"],
                "target": scope["raw_path"],
                "query": scope["query_string"],
                "headers": scope["headers"],
                "body": body,
            }
        )
        way = scope["path"].rsplit("/", 1)[-1]
        await getattr(self, f"_{way}", self._completions)(body, receive, send)

    def header(self, name: bytes) -> bytes | None:
        """A header of the request that was seen last."""
        return dict(self.seen[-1]["headers"]).get(name)

    async def _completions(self, body: bytes, receive: Any, send: Any) -> None:
        await whole(send, ANSWER)

    async def _echo(self, body: bytes, receive: Any, send: Any) -> None:
        await whole(send, body, (b"content-type", b"application/octet-stream"))

    async def _gzip(self, body: bytes, receive: Any, send: Any) -> None:
        coded = gzip.compress(ANSWER, mtime=0)
        await whole(
            send, coded, (b"content-type", b"application/json"), (b"content-encoding", b"gzip")
        )

    async def _large(self, body: bytes, receive: Any, send: Any) -> None:
        await whole(send, MEGABYTE, (b"content-type", b"application/octet-stream"))

    async def _hops(self, body: bytes, receive: Any, send: Any) -> None:
        await whole(
            send,
            b"{}",
            (b"content-type", b"application/json"),
            (b"connection", b"x-of-this-hop"),
            (b"x-of-this-hop", b"1"),
            (b"keep-alive", b"timeout=5"),
            (b"set-cookie", b"a=1"),
            (b"set-cookie", b"b=2"),
            (b"x-own", b"kept"),
        )

    async def _redirect(self, body: bytes, receive: Any, send: Any) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 307,
                "headers": [(b"location", b"/elsewhere"), (b"content-length", b"0")],
            }
        )
        await send({"type": "http.response.body", "body": b""})

    async def _unchanged(self, body: bytes, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 304, "headers": [(b"etag", b'"1"')]})
        await send({"type": "http.response.body", "body": b""})

    async def _cuts(self, body: bytes, receive: Any, send: Any) -> None:
        await _start_stream(send)
        size = json.loads(body)["cut"]
        for start in range(0, len(SSE), size):
            piece = SSE[start : start + size]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b""})

    async def _held(self, body: bytes, receive: Any, send: Any) -> None:
        """Say the first piece, and the rest when told to."""
        await _start_stream(send)
        first = event(delta("first"))
        await send({"type": "http.response.body", "body": first, "more_body": True})
        await asyncio.to_thread(self.go_on.wait, 20)
        last = event(delta("last")) + event("[DONE]")
        await send({"type": "http.response.body", "body": last})

    async def _endless(self, body: bytes, receive: Any, send: Any) -> None:
        await _start_stream(send)
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            piece = event(delta(" word"))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.wait([gone], timeout=0.002)
        self.stopped.set()

    async def _thinking(self, body: bytes, receive: Any, send: Any) -> None:
        """Never answer; see that the client has gone."""
        assert (await receive())["type"] == "http.disconnect"
        self.stopped.set()


async def whole(send: Any, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    shown = headers or ((b"content-type", b"application/json"),)
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [*shown, length]})
    await send({"type": "http.response.body", "body": body})


async def _start_stream(send: Any) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


class Broken:
    """A server on a socket: takes one request on each connection, says given bytes, hangs up."""

    def __init__(self, said: bytes) -> None:
        self._said = said
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                connection.sendall(self._said)
                connection.shutdown(socket.SHUT_WR)
                with contextlib.suppress(OSError):
                    while connection.recv(65536):
                        pass


@contextlib.contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        yield client


def raw(
    url: str,
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: tuple[str, ...] = (),
    chunks: int = 0,
) -> bytes:
    """Send one request, its body in `chunks` pieces where told; return all that came back."""
    with connected(url) as client:
        client.sendall(request(path, body, method=method, headers=headers, chunks=chunks))
        got = b""
        while piece := client.recv(65536):
            got += piece
        return got


def request(
    path: str,
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: tuple[str, ...] = (),
    chunks: int = 0,
) -> bytes:
    own = {line.partition(":")[0].lower() for line in headers}
    lines = [f"{method} {path} HTTP/1.1", "host: public.example", *headers]
    if "connection" not in own:
        lines.append("connection: close")
    if "content-type" not in own:
        lines.append("content-type: application/json")
    if chunks:
        lines.append("transfer-encoding: chunked")
        size = max(len(body) // chunks, 1)
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    elif method == "POST":
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def parted(answer: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of a raw answer, chunks joined."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = [
        (name.lower(), value) for name, _, value in (line.partition(b": ") for line in lines)
    ]
    if (b"transfer-encoding", b"chunked") in headers:
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            if not size or not int(size, 16):
                break
            length = int(size, 16)
            body, rest = body + rest[:length], rest[length + 2 :]
        rest = body
    return int(first.split()[1]), headers, rest


@contextlib.contextmanager
def upstream(http: str = "h11") -> Iterator[tuple[Upstream, str]]:
    app = Upstream()
    with serving(app, http=http, lifespan="off", proxy_headers=False) as url:
        try:
            yield app, url
        finally:
            app.go_on.set()
