"""Clients that close one direction, or never read: one bill for what was made, nothing is left."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from inf_middleware import Account, CostLedger, Tier, TierLimiter, TokenMeter
from inf_middleware.stores.memory import MemoryStore
from inf_middleware.tokens.encodings import load_encoding
from tests.apps import delta, event
from tests.kit import STREAM, records_of
from tests.processes import wait_until
from tests.servers import serving

PATIENCE_S = 90.0
LEASE_S = 2.0
FRAMES = 30

# Of one frame: more than its JSON, so that a window fills after some hundred of them. By characters
# that the tokenizer takes for one token each, or nearly.
WORD = " word" * 400

# Far beyond what the buffers of a connection on this host take in both directions.
BUFFERED_BYTES_MAX = 64 * 1024 * 1024

ONE_SLOT = Tier("Single", 1, 100_000, 10**12)


class Model:
    """Streams frames, as many as a request says in its `metadata`, or until nobody takes them."""

    def __init__(self) -> None:
        self.made = 0
        self.goes_on = threading.Event()  # after the first frame
        self.stopped = threading.Event()
        self.app = Starlette(
            routes=[Route("/v1/chat/completions", self.chat, methods=["POST"])],
        )

    async def chat(self, request: Request) -> StreamingResponse:
        asked = (await request.json())["metadata"]
        return StreamingResponse(
            self.frames(asked["frames"], asked["word"]), media_type="text/event-stream"
        )

    async def frames(self, frames: int | None, word: str) -> Any:
        try:
            while frames is None or self.made < frames:
                self.made += 1
                yield event(delta(word))
                while not self.goes_on.is_set():  # noqa: ASYNC110 - of another thread
                    await asyncio.sleep(0.005)
                await asyncio.sleep(0)
            yield event("[DONE]")
        finally:
            self.stopped.set()


@dataclass
class Shop:
    url: str
    model: Model
    store: MemoryStore
    ledger: Path

    def ask(self, *, frames: int | None, word: str) -> socket.socket:
        """Send a request whose answer is not read yet."""
        host, port = self.url.removeprefix("http://").split(":")
        body = json.dumps({**STREAM, "metadata": {"frames": frames, "word": word}}).encode()
        client = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-one\r\n"
            b"connection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        return client

    def bill(self) -> dict[str, Any]:
        """Wait for the one record; nothing is held then."""
        wait_until(
            lambda: bool(self.ledger.exists() and records_of(self.ledger)),
            "there is a record",
            timeout_s=PATIENCE_S,
        )
        wait_until(
            lambda: self.store.in_progress("acme") == 0, "no slot is held", timeout_s=PATIENCE_S
        )
        (record,) = records_of(self.ledger)
        return record


@contextmanager
def shop(folder: Path, http: str) -> Iterator[Shop]:
    model = Model()
    store = MemoryStore()
    ledger = folder / "ledger.db"
    app = model.app
    app.add_middleware(TokenMeter)
    app.add_middleware(
        TierLimiter,
        storage=store,
        accounts={"sk-one": Account("acme", tier=ONE_SLOT)},
        lease_s=LEASE_S,
    )
    app.add_middleware(CostLedger, ledger=f"sqlite:///{ledger}")
    with serving(app, http=http) as url:
        try:
            yield Shop(url, model, store, ledger)
        finally:
            model.goes_on.set()


def check(record: dict[str, Any], tokens: range) -> None:
    assert record["basis"] == "counted"
    assert record["output_tokens"] in tokens
    assert record["amount_nano"] == (record["input_tokens"] + record["output_tokens"]) * 10_000


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_client_that_closes_its_sending_direction_pays_once_for_what_was_made(
    http: str, tmp_path: Path
) -> None:
    with shop(tmp_path, http) as there, there.ask(frames=FRAMES, word=" word") as client:
        client.shutdown(socket.SHUT_WR)
        there.model.goes_on.set()
        got = b""
        while piece := client.recv(65536):
            got += piece
        record = there.bill()
        assert there.model.stopped.wait(PATIENCE_S)
        made = there.model.made
    if b"[DONE]" in got:  # the server serves such clients
        assert (made, record["outcome"]) == (FRAMES, "complete")
    else:  # to the server it has left
        assert record["outcome"] == "client_disconnect"
    count = len(load_encoding("o200k_base").encode_ordinary(" word" * made))
    # What the app made last may not have been sent any more.
    check(record, range(max(count - 1, 0), count + 1))


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_client_that_never_reads_keeps_its_one_slot_and_pays_for_what_was_made(
    http: str, tmp_path: Path
) -> None:
    with shop(tmp_path, http) as there, there.ask(frames=None, word=WORD) as client:
        model = there.model
        model.goes_on.set()

        def is_stuck() -> bool:
            before = model.made
            time.sleep(LEASE_S / 10)
            return before > 10 and model.made == before

        wait_until(is_stuck, "the window is full", timeout_s=PATIENCE_S)
        # For longer than a lease, the slot is the call's own.
        deadline = time.monotonic() + 1.5 * LEASE_S
        while time.monotonic() < deadline:
            assert there.store.in_progress("acme") == 1
            time.sleep(LEASE_S / 10)
        with there.ask(frames=1, word=" word") as second:
            assert second.recv(65536).startswith(b"HTTP/1.1 429 ")
        assert model.made * len(event(delta(WORD))) < BUFFERED_BYTES_MAX
        assert not there.ledger.exists() or records_of(there.ledger) == []
        client.close()
        record = there.bill()
        assert model.stopped.wait(PATIENCE_S)
        made = model.made
    assert record["outcome"] == "client_disconnect"
    count = len(load_encoding("o200k_base").encode_ordinary(WORD)) * made
    one = count // made
    check(record, range(count - one, count + 1))
