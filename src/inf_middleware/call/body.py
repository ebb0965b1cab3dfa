"""The request's body: read once, bounded, and replayed.

After the replay `receive` is the server's own again: answering with a made-up disconnect kills
streams after their first event, answering with empty requests makes listeners spin.
"""

import asyncio
import types
from collections.abc import Generator
from typing import Any

from starlette.types import Message, Receive, Scope

from inf_middleware.call.ahead import ClientGone
from inf_middleware.call.drain import drains
from inf_middleware.call.record import Call
from inf_middleware.call.refuse import Refuse
from inf_middleware.wire.length import length_of

# A body that takes longer than this holds a connection for nothing; SDKs send theirs in one go.
BODY_TIMEOUT_S = 30.0


async def begin_body(receive: Receive) -> Message:
    """Return the first message that brings any of the body, or that ends it.

    Raises:
        Refuse: It is over its deadline (408).
        ClientGone: The client left meanwhile.
    """
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                if message.get("body") or not message.get("more_body", False):
                    return message
    except TimeoutError:
        raise _too_slow() from None


async def read_body(declared: bytes | None, receive: Receive, body_bytes_max: int) -> Message:
    """Read the whole body, of the length that is `declared`, if any; return it as one message.

    Raises:
        Refuse: The body is over its bound (413) or its deadline (408).
        ClientGone: The client left meanwhile.
    """
    if declared is not None and (length_of(declared) or 0) > body_bytes_max:
        raise _too_large(body_bytes_max)
    pieces: list[bytes] = []
    size = 0
    deadline: _Deadline | None = None
    try:
        while True:
            # As `await receive()`, but for what is done before the first wait: the bodies of nearly
            # all requests are there when they are asked for, and have no need of a deadline.
            waiting = receive().__await__()
            try:
                awaited = next(waiting)
            except StopIteration as done:
                message: Message = done.value
            else:
                deadline = deadline or _Deadline(BODY_TIMEOUT_S)
                message = await _resumed(waiting, awaited)
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece: bytes = message.get("body", b"")
            size += len(piece)
            if size > body_bytes_max:
                raise _too_large(body_bytes_max)
            if not message.get("more_body", False):
                return as_message(b"".join([*pieces, piece])) if pieces else message
            pieces.append(piece)
    except asyncio.CancelledError:
        if deadline is None or not deadline.was_missed():
            raise
        raise _too_slow() from None
    finally:
        if deadline is not None:
            deadline.cancel()


class _Deadline:
    """Cancels the running task after a time.

    As `asyncio.timeout` does, at a fifth of its cost.
    """

    __slots__ = ("_cancelling", "_is_over", "_task", "_timer")

    def __init__(self, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None
        self._task = task
        self._is_over = False
        self._cancelling = task.cancelling()
        self._timer = loop.call_later(timeout_s, self._fall_due)

    def cancel(self) -> None:
        """Let go: what was waited for is there."""
        self._timer.cancel()

    def was_missed(self) -> bool:
        """Tell, of a cancellation, whether it was this and nobody else's."""
        return self._is_over and self._task.uncancel() <= self._cancelling

    def _fall_due(self) -> None:
        self._is_over = True
        self._task.cancel()


@types.coroutine
def _resumed(waiting: Generator[Any, Any, Message], awaited: Any) -> Generator[Any, Any, Message]:
    """Await to its end what waits for the first time."""
    while True:
        thrown: BaseException | None = None
        try:
            yield awaited
        except BaseException as error:
            thrown = error
        try:
            awaited = next(waiting) if thrown is None else waiting.throw(thrown)
        except StopIteration as done:
            message: Message = done.value
            return message


def _too_slow() -> Refuse:
    return Refuse(
        408,
        "request_timeout",
        f"The request body did not arrive within {BODY_TIMEOUT_S:g} seconds; send it again.",
    )


def _too_large(body_bytes_max: int) -> Refuse:
    return Refuse(
        413,
        "request_too_large",
        f"The request body is over {body_bytes_max:,} bytes; send a smaller one.",
    )


def as_message(body: bytes) -> Message:
    """Return a whole body as the message that brings it."""
    return {"type": "http.request", "body": body, "more_body": False}


class Replayed:
    """A `receive` that gives `first` (None: nothing was read) and then is the server's.

    It notes on the call when the client is seen to leave. As a closure it would be five objects
    more for the garbage collector, of each call.
    """

    __slots__ = ("_call", "_first", "_receive")

    def __init__(self, call: Call, first: Message | None, receive: Receive) -> None:
        self._call = call
        self._first = first
        self._receive = receive

    async def __call__(self) -> Message:
        """Receive the next message."""
        if self._first is not None:
            message, self._first = self._first, None
            return message
        message = await self._receive()
        call = self._call
        if message["type"] == "http.disconnect" and not call.ended:
            call.disconnected = True
            if drains.begin(call):
                await drains.hide(call)
        return message


def with_length(scope: Scope, length: int) -> Scope:
    """Return a copy of the scope whose `content-length` fits a rewritten body."""
    headers = [
        (name, str(length).encode() if name.lower() == b"content-length" else value)
        for name, value in scope["headers"]
    ]
    return {**scope, "headers": headers}
