"""Starlette with the three in one: metered, limited and billed, JSON and streams.

pip install inf-middleware uvicorn
uvicorn --app-dir examples starlette_gate:app

curl http://localhost:8000/v1/chat/completions -H "Authorization: Bearer sk-acme" \
  -d '{"model": "inf-chat-v1", "messages": [{"role": "user", "content": "tea?"}]}'
"""

import json
import os
from collections.abc import AsyncIterator
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from inf_middleware import Account, Gate

ACCOUNTS = {
    "sk-free": Account("free-riders"),  # a new account is on the level Free
    "sk-acme": Account("acme", recharged="500"),  # ¥500 recharged in all: Tier1
}


async def chat(request: Request) -> Response:
    """Answer; your model is here. It tells no usage, so the gate counts its text."""
    asked = await request.json()
    words = ["Tea ", "is ", "served ", "at ", "five."]
    if asked.get("stream"):
        return StreamingResponse(stream(asked["model"], words), media_type="text/event-stream")
    message = {"role": "assistant", "content": "".join(words)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse({"object": "chat.completion", "model": asked["model"], "choices": [choice]})


async def stream(model: str, words: list[str]) -> AsyncIterator[str]:
    """Yield the answer as server-sent events."""
    for word in [*words, None]:
        choice: dict[str, Any] = {
            "index": 0,
            "delta": {} if word is None else {"content": word},
            "finish_reason": "stop" if word is None else None,
        }
        chunk = {"object": "chat.completion.chunk", "model": model, "choices": [choice]}
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"


app = Starlette(
    routes=[Route("/v1/chat/completions", chat, methods=["POST"])],
    # The first is outermost: browsers see the headers of CORS on refusals too.
    middleware=[
        Middleware(
            CORSMiddleware,
            allow_origins=["https://chat.example"],
            allow_methods=["POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=["retry-after", "x-request-id"],
        ),
        Middleware(
            Gate,
            accounts=ACCOUNTS,
            ledger=os.environ.get("LEDGER", "sqlite:///inf-ledger.db"),
        ),
    ],
)
