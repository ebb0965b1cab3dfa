"""The model server of a simulation: answers each request as that request was planned."""

import asyncio
import contextlib
import json
from typing import Any

from inf_middleware import current_call
from tests.apps import completion, delta, event, read_all, usage_of
from tests.simulate.asked import REQUEST, Asked


class ModelFailure(Exception):  # noqa: N818 - it is planned
    """What a planned failure of the app raises."""


async def model_app(scope: Any, receive: Any, send: Any) -> None:
    """Serve one scope."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    request = REQUEST.get()
    assert request is not None
    request.served = True
    request.state = "working"
    request.is_called(current_call(scope).id)
    body = json.loads(await read_all(receive))
    asked = (body.get("stream_options") or {}).get("include_usage", False)
    listening = asyncio.ensure_future(_hear(receive)) if request.listens else None
    try:
        await _answer(request, asked, send, listening)
    except ModelFailure:
        request.raised = True
        raise
    finally:
        if listening is not None:
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening


async def _hear(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _answer(request: Asked, asked: bool, send: Any, listening: Any) -> None:
    await asyncio.sleep(request.chunk_us / 1e6)
    if request.fails == "before":
        raise ModelFailure
    kind = b"text/event-stream" if request.stream else b"application/json"
    headers = [(b"content-type", kind)]
    status = 500 if request.fails == "status" else 200
    whole = b""
    if not request.stream or status >= 400:
        usage = usage_of(*request.usage) if request.tells_usage and status < 400 else None
        text = "w " * request.total_words
        whole = json.dumps(
            completion(text, usage=usage) if status < 400 else {"error": {}}
        ).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(whole)),
        ]
    request.status = status
    if status < 400:
        request.state = "streaming"
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if request.fails == "started":
        raise ModelFailure
    if whole:
        await asyncio.sleep(request.chunk_us / 1e6)
        request.emitted.append(whole)
        if status < 400:
            request.produced = request.last = request.total_words
            request.reported = request.tells_usage
        await send({"type": "http.response.body", "body": whole})
        return
    await _stream(request, asked, send, listening)


async def _stream(request: Asked, asked: bool, send: Any, listening: Any) -> None:
    async def emit(body: bytes, *, more: bool = True) -> None:
        request.emitted.append(body)
        await send({"type": "http.response.body", "body": body, "more_body": more})

    for place, words in enumerate(request.chunks):
        await asyncio.sleep(request.chunk_us / 1e6)
        if listening is not None and listening.done():
            return
        if request.fails == "middle" and place == len(request.chunks) // 2:
            raise ModelFailure
        request.produced += words
        request.last = words
        await emit(event(delta("w " * words)))
        if request.state not in ("settling", "closing"):
            request.state = "streaming"
    if request.fails == "endless":
        return
    await emit(event(delta("", finish="stop")))
    if asked and request.tells_usage:
        request.reported = True
        await emit(event(usage_chunk_of(request)))
    await emit(event("[DONE]"))
    await emit(b"", more=False)


def usage_chunk_of(request: Asked) -> dict[str, Any]:
    """Return the event that tells a stream's usage."""
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": request.model,
        "choices": [],
        "usage": usage_of(*request.usage),
    }
