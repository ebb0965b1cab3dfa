"""A raw ASGI driver: one request, its body in any cut, every message of the answer in order."""

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel

Message = dict[str, Any]
App = Callable[..., Awaitable[None]]


@dataclass
class Answered:
    """What came back: messages as they were sent."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self._start["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self._start["headers"]}

    @property
    def header_list(self) -> list[tuple[bytes, bytes]]:
        return list(self._start["headers"])

    @property
    def bodies(self) -> list[bytes]:
        return [m.get("body", b"") for m in self.messages if m["type"] == "http.response.body"]

    @property
    def body(self) -> bytes:
        return b"".join(self.bodies)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def _start(self) -> Message:
        return next(m for m in self.messages if m["type"] == "http.response.start")


def scope_of(
    path: str = "/v1/chat/completions",
    *,
    method: str = "POST",
    key: str | None = None,
    headers: Sequence[tuple[str, str]] = (),
    length: int | None = None,
    client: tuple[str, int] | None = ("127.0.0.1", 50000),
    spec_version: str = "2.3",
) -> dict[str, Any]:
    raw = [(b"host", b"test"), (b"content-type", b"application/json")]
    if length is not None:
        raw.append((b"content-length", str(length).encode()))
    if key is not None:
        raw.append((b"authorization", f"Bearer {key}".encode()))
    raw += [(name.encode(), value.encode()) for name, value in headers]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": raw,
        "client": client,
        "server": ("127.0.0.1", 80),
        "state": {},
    }


async def post(
    app: App,
    body: bytes | dict[str, Any],
    *,
    pieces: Sequence[bytes] | None = None,
    leave_after: int | None = None,
    on_message: Callable[[Message], Awaitable[None]] | None = None,
    **scope: Any,
) -> Answered:
    """Send one request. `leave_after` body messages of the answer the client is gone."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    cuts = list(pieces) if pieces is not None else [raw]
    queue: list[Message] = [
        {"type": "http.request", "body": piece, "more_body": number < len(cuts) - 1}
        for number, piece in enumerate(cuts)
    ]
    gone = anyio.Event()
    answered = Answered()
    seen = 0

    async def receive() -> Message:
        if queue:
            return queue.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal seen
        answered.messages.append(message)
        if on_message is not None:
            await on_message(message)
        if message["type"] == "http.response.body":
            seen += 1
            if (leave_after is not None and seen >= leave_after) or not message.get("more_body"):
                gone.set()
                await anyio.lowlevel.checkpoint()

    await app(scope_of(length=len(raw), **scope), receive, send)
    return answered
