"""The bare app: Starlette with a model that does nothing, and the request it is asked with."""

import json
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PATH = "/v1/chat/completions"
KEY = "sk-benchmark"
MODEL = "inf-chat-v1"
CHUNKS = 500

_TEXT = "The quick brown fox jumps over the lazy dog; 账本以纳元计。 "


def asked(*, stream: bool, size: int = 1_024, **more: Any) -> bytes:
    """Return a chat request of about `size` bytes."""
    body: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": ""}],
        "max_tokens": CHUNKS,
        "temperature": 0.7,
        **more,
    }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    room = size - len(json.dumps(body, ensure_ascii=False).encode())
    body["messages"][1]["content"] = (_TEXT * (room // len(_TEXT.encode()) + 1))[
        : room * len(_TEXT) // len(_TEXT.encode())
    ]
    return json.dumps(body, ensure_ascii=False).encode()


_USAGE = {"prompt_tokens": 220, "completion_tokens": CHUNKS, "total_tokens": 220 + CHUNKS}

_ANSWER = {
    "id": "chatcmpl-a70e9cdfa6cbd7bc",
    "object": "chat.completion",
    "created": 1795468652,
    "model": MODEL,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Nothing was thought of here. " * 8},
            "finish_reason": "stop",
        }
    ],
    "usage": _USAGE,
}


def chunk(number: int) -> bytes:
    """Make one chunk of a stream, as vLLM makes them."""
    value = {
        "id": "chatcmpl-a70e9cdfa6cbd7bc",
        "object": "chat.completion.chunk",
        "created": 1795468652,
        "model": MODEL,
        "choices": [
            {
                "index": 0,
                "delta": {"content": f" word{number}"},
                "logprobs": None,
                "finish_reason": None,
            }
        ],
    }
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _last(**more: Any) -> bytes:
    value = {"id": "chatcmpl-a70e9cdfa6cbd7bc", "object": "chat.completion.chunk", "model": MODEL}
    return b"data: " + json.dumps({**value, "choices": [], **more}).encode() + b"\n\n"


# Made beforehand: then a stream costs the bare app least, and what we add weighs most.
STREAM = (*(chunk(number) for number in range(CHUNKS)), _last(usage=_USAGE), b"data: [DONE]\n\n")


async def answer(request: Request) -> Response:
    """Answer a chat request with usage, as JSON or as a stream."""
    if not (await request.json()).get("stream"):
        return JSONResponse(_ANSWER)

    async def pieces() -> Any:
        for piece in STREAM:
            yield piece

    return StreamingResponse(pieces(), media_type="text/event-stream")


def bare() -> Starlette:
    """Make the app alone."""
    return Starlette(routes=[Route(PATH, answer, methods=["POST"])])
