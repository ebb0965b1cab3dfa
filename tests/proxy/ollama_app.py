"""An app that speaks what of Ollama's API its clients need, as its documentation tells it."""

import asyncio
import json
from typing import Any

from tests.apps import read_all
from tests.proxy.upstreams import whole


class OllamaApp:
    """Speaks what of Ollama's API a chat needs: lines of JSON, the counts in the last."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        asked = json.loads(await read_all(receive) or b"{}")
        if scope["path"] == "/api/tags":
            await whole(send, b'{"models": []}')
            return
        if scope["path"] == "/v1/models":
            await whole(send, b'{"object": "list", "data": [{"id": "llama3.2"}]}')
            return
        at = "2026-11-24T00:00:00Z"
        named = {"model": asked["model"], "created_at": at}
        texts = ["Hel", "lo", "."]
        done = {"done": True, "done_reason": "stop", "prompt_eval_count": 12, "eval_count": 4}
        headers = [(b"content-type", b"application/x-ndjson")]
        if asked.get("stream") is False:
            message = {"role": "assistant", "content": "".join(texts)}
            await whole(send, json.dumps({**named, "message": message, **done}).encode())
            return
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for text in texts:
            line = {**named, "message": {"role": "assistant", "content": text}, "done": False}
            raw_line = json.dumps(line).encode() + b"\n"
            for piece in (raw_line[:20], raw_line[20:]):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.sleep(0)
        last = json.dumps({**named, "message": {"role": "assistant", "content": ""}, **done})
        await send({"type": "http.response.body", "body": last.encode() + b"\n"})
