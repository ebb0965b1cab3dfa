"""The request's body: read once, bounded, and replayed.

After the replay `receive` is the server's own again: answering with a made-up disconnect kills
streams after their first event, answering with empty requests makes listeners spin.
"""

import anyio
from starlette.types import Message, Receive, Scope

from inf_middleware.call.ahead import ClientGone
from inf_middleware.call.drain import drains
from inf_middleware.call.record import Call
from inf_middleware.call.refuse import Refuse

# A body that takes longer than this holds a connection for nothing; SDKs send theirs in one go.
BODY_TIMEOUT_S = 30.0


async def read_body(scope: Scope, receive: Receive, body_bytes_max: int) -> bytes:
    """Read the whole body.

    Raises:
        Refuse: The body is over its bound (413) or its deadline (408).
        ClientGone: The client left meanwhile.
    """
    too_large = Refuse(
        413,
        "request_too_large",
        f"The request body is over {body_bytes_max:,} bytes; send a smaller one.",
    )
    if _declared_length(scope) > body_bytes_max:
        raise too_large
    pieces: list[bytes] = []
    size = 0
    with anyio.move_on_after(BODY_TIMEOUT_S):
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            piece = message.get("body", b"")
            size += len(piece)
            if size > body_bytes_max:
                raise too_large
            pieces.append(piece)
            if not message.get("more_body", False):
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    raise Refuse(
        408,
        "request_timeout",
        f"The request body did not arrive within {BODY_TIMEOUT_S:g} seconds; send it again.",
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


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0
