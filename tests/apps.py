"""Small model servers in pure ASGI: each says exactly what it is told to, message by message."""

import json
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]


async def read_all(receive: Any) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            return body


async def live(receive: Any, send: Any) -> None:
    """Answer a lifespan to its end."""
    while True:
        message = await receive()
        await send({"type": message["type"] + ".complete"})
        if message["type"] == "lifespan.shutdown":
            return


def completion(
    text: str = "Hello there.",
    *,
    usage: dict[str, Any] | None = None,
    model: str = "inf-chat-v1",
    **more: Any,
) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "stop",
            }
        ],
        **more,
    }
    if usage is not None:
        answer["usage"] = usage
    return answer


def usage_of(prompt: int, output: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
    }


def event(payload: dict[str, Any] | str) -> bytes:
    data = payload if isinstance(payload, str) else json.dumps(payload)
    return f"data: {data}\n\n".encode()


def delta(text: str, *, index: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "inf-chat-v1",
        "choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}],
        **more,
    }


def usage_chunk(prompt: int, output: int) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "inf-chat-v1",
        "choices": [],
        "usage": usage_of(prompt, output),
    }


class JsonApp:
    """Answers with one JSON body, and remembers the bodies it was sent."""

    def __init__(self, answer: dict[str, Any] | bytes, *, status: int = 200) -> None:
        self.answer = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.status = status
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append(await read_all(receive))
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(self.answer)).encode()),
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.answer})


class StreamApp:
    """Sends given pieces as an SSE stream, each as one message, then the closing one."""

    def __init__(self, pieces: Sequence[bytes], *, closes: bool = True) -> None:
        self.pieces = list(pieces)
        self.closes = closes
        self.bodies: list[bytes] = []

    @property
    def messages(self) -> list[bytes]:
        return [*self.pieces, b""]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append(await read_all(receive))
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if self.closes:
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class Asking:
    """A stream server that sends the usage event only where the request asks for it."""

    def __init__(self, texts: Sequence[str], prompt: int = 7) -> None:
        self.texts = list(texts)
        self.prompt = prompt
        self.bodies: list[bytes] = []

    def frames(self, asked: bool) -> list[bytes]:
        frames = [event(delta(text)) for text in self.texts]
        frames.append(event(delta("", finish="stop")))
        if asked:
            frames.append(event(usage_chunk(self.prompt, len(self.texts))))
        return [*frames, event("[DONE]")]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = await read_all(receive)
        self.bodies.append(body)
        options = json.loads(body).get("stream_options") or {}
        await StreamApp(self.frames(bool(options.get("include_usage"))))(scope, _replay(body), send)


def _replay(body: bytes) -> Any:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
