"""The request's body: read once, bounded, and replayed.

After the replay `receive` is the server's own again: answering with a made-up disconnect kills
streams after their first event, answering with empty requests makes listeners spin.
"""

import asyncio
import types
from collections.abc import Awaitable, Generator
from typing import Any, cast

from starlette.types import Message, Receive, Scope

from inf_middleware.call.ahead import ClientGone
from inf_middleware.call.drain import drains
from inf_middleware.call.record import Call
from inf_middleware.call.refuse import Refuse

# A body that takes longer than this holds a connection for nothing; SDKs send theirs in one go.
BODY_TIMEOUT_S = 30.0


async def read_body(declared: bytes | None, receive: Receive, body_bytes_max: int) -> bytes:
    """Read the whole body, of the length that is `declared`, if any.

    Raises:
        Refuse: The body is over its bound (413) or its deadline (408).
        ClientGone: The client left meanwhile.
    """
    if declared is not None and declared.isdigit() and int(declared) > body_bytes_max:
        raise _too_large(body_bytes_max)
    pieces: list[bytes] = []
    size = 0
    deadline = _Deadline(BODY_TIMEOUT_S)
    try:
        while True:
            message = await _awaited(receive(), deadline)
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            size += len(piece)
            if size > body_bytes_max:
                raise _too_large(body_bytes_max)
            pieces.append(piece)
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    except asyncio.CancelledError:
        if not deadline.was_missed():
            raise
        raise Refuse(
            408,
            "request_timeout",
            f"The request body did not arrive within {BODY_TIMEOUT_S:g} seconds; send it again.",
        ) from None
    finally:
        deadline.cancel()


class _Deadline:
    """Cancels the running task after a time.

    As `asyncio.timeout` does, at a fifth of its cost: each request has one, and hardly any waits.
    """

    __slots__ = ("_cancelling", "_is_over", "_task", "_timeout_s", "_timer")

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._is_over = False
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Have it fall due after its time; once."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            task = asyncio.current_task(loop)
            assert task is not None
            self._task = task
            self._cancelling = task.cancelling()
            self._timer = loop.call_later(self._timeout_s, self._fall_due)

    def cancel(self) -> None:
        """Let go: what was waited for is there."""
        if self._timer is not None:
            self._timer.cancel()

    def was_missed(self) -> bool:
        """Tell, of a cancellation, whether it was this and nobody else's."""
        return self._is_over and self._task.uncancel() <= self._cancelling

    def _fall_due(self) -> None:
        self._is_over = True
        self._task.cancel()


@types.coroutine
def _awaited(step: Awaitable[Message], deadline: _Deadline) -> Generator[Any, Any, Message]:
    """Await a step; where it is not done at once, by a deadline.

    As `await` does it, but for what is done before the first wait: the bodies of nearly all
    requests are there when they are asked for.
    """
    waiting = step.__await__()
    try:
        awaited = next(waiting)
    except StopIteration as done:
        return cast("Message", done.value)
    deadline.begin()
    while True:
        thrown: BaseException | None = None
        try:
            yield awaited
        except BaseException as error:
            thrown = error
        try:
            awaited = next(waiting) if thrown is None else waiting.throw(thrown)
        except StopIteration as done:
            return cast("Message", done.value)


def _too_large(body_bytes_max: int) -> Refuse:
    return Refuse(
        413,
        "request_too_large",
        f"The request body is over {body_bytes_max:,} bytes; send a smaller one.",
    )


def replayed(call: Call, body: bytes | None, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` first (None: it was not read) and then is the server's.

    It notes on the call when the client is seen to leave.
    """
    unread = body

    async def replaying() -> Message:
        nonlocal unread
        if unread is not None:
            message: Message = {"type": "http.request", "body": unread, "more_body": False}
            unread = None
            return message
        message = await receive()
        if message["type"] == "http.disconnect" and not call.ended:
            call.disconnected = True
            if drains.begin(call):
                await drains.hide(call)
        return message

    return replaying


def with_length(scope: Scope, length: int) -> Scope:
    """Return a copy of the scope whose `content-length` fits a rewritten body."""
    headers = [
        (name, str(length).encode() if name.lower() == b"content-length" else value)
        for name, value in scope["headers"]
    ]
    return {**scope, "headers": headers}
