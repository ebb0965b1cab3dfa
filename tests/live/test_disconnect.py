"""A client that disconnects mid-stream: one record with what was produced, and nothing left."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

from inf_middleware import Account, CostLedger, TierLimiter, TokenMeter
from inf_middleware.stores.memory import MemoryStore
from inf_middleware.tokens.encodings import load_encoding
from tests.apps import delta, event
from tests.kit import STREAM, records_of
from tests.servers import serving

DEADLINE_S = 15.0


class Endless:
    """Streams words until it is stopped, and remembers how many it made."""

    def __init__(self) -> None:
        self.made = 0
        self.stopped = False
        self.tasks_left: set[str] = set()
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/tasks", self.tasks),
            ]
        )

    async def chat(self, request: Any) -> StreamingResponse:
        return StreamingResponse(self.words(), media_type="text/event-stream")

    async def words(self) -> Any:
        try:
            while True:
                self.made += 1
                yield event(delta(" word"))
                await asyncio.sleep(0.002)
        finally:
            self.stopped = True

    async def tasks(self, request: Any) -> Any:
        from starlette.responses import JSONResponse

        names = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks()]
        return JSONResponse(names)


def leave_mid_stream(url: str, read_bytes: int) -> None:
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps(STREAM).encode()
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-one\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        got = b""
        while len(got) < read_bytes:
            got += client.recv(4096)


def tasks_of(url: str) -> list[str]:
    import httpx

    return list(httpx.get(f"{url}/tasks").json())


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("read_bytes", [600, 5_000])
def test_a_client_that_leaves_mid_stream_leaves_nothing_behind(
    http: str, read_bytes: int, tmp_path: Path
) -> None:
    endless = Endless()
    store = MemoryStore()
    ledger = tmp_path / "ledger.db"
    app = endless.app
    app.add_middleware(TokenMeter)
    app.add_middleware(
        TierLimiter, storage=store, accounts={"sk-one": Account("acme", tier="Tier1")}
    )
    app.add_middleware(CostLedger, ledger=f"sqlite:///{ledger}")
    with serving(app, http=http) as url:
        before = sorted(tasks_of(url))
        leave_mid_stream(url, read_bytes)
        deadline = time.monotonic() + DEADLINE_S
        while not (ledger.exists() and records_of(ledger)):
            assert time.monotonic() < deadline, "no record was made"
            time.sleep(0.02)
        (record,) = records_of(ledger)
        assert endless.stopped
        assert store.in_progress("acme") == 0
        assert sorted(tasks_of(url)) == before
    encoding = load_encoding("o200k_base")
    produced = len(encoding.encode_ordinary(" word" * endless.made))
    assert (record["basis"], record["outcome"]) == ("counted", "client_disconnect")
    # What the app made last may not have been sent any more.
    assert produced - 1 <= record["output_tokens"] <= produced
    assert record["input_tokens"] > 0
    assert record["amount_nano"] == (record["input_tokens"] + record["output_tokens"]) * 10_000
