"""A client that leaves at any frame of a stream, on every server: one bill, the right amount."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from inf_middleware.tokens.encodings import load_encoding
from tests.kit import STREAM, records_of
from tests.live.model_servers import FRAMES, SERVERS, serving_process

DEADLINE_S = 30.0


def leave_after(port: int, client: httpx.Client, frames: int) -> str:
    """Ask for a stream, and close the connection when so many frames have been read."""
    name = f"leaves-after-{frames}"
    body = json.dumps(STREAM).encode()
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer sk-one\r\n"
            b"content-type: application/json\r\nx-name: %s\r\ncontent-length: %d\r\n\r\n%s"
            % (name.encode(), len(body), body)
        )
        got = b""
        told = 0
        while (seen := got.count(b"data: {")) < frames:
            if seen > told:
                told = seen
                client.get(f"/saw/{name}", params={"frames": told})
            got += connection.recv(65536)
    return name


def settled(client: httpx.Client, ledger: Path, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        records = records_of(ledger) if ledger.exists() else []
        state = client.get("/state").json()
        if len(records) >= count and not state["running"] and not state["in_progress"]:
            return records
        assert time.monotonic() < deadline, (len(records), state)
        time.sleep(0.02)


@pytest.mark.parametrize("server", SERVERS)
def test_a_client_that_leaves_at_any_frame_is_billed_once_for_what_was_made(
    server: str, tmp_path: Path
) -> None:
    ledger = tmp_path / "ledger.db"
    encoding = load_encoding("o200k_base")
    with (
        serving_process(server, "tests.live.framed_app:app", ledger) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE_S) as client,
    ):
        tasks = client.get("/state").json()["tasks"]
        records: list[dict[str, Any]] = []
        for frames in range(1, FRAMES + 1):
            name = leave_after(port, client, frames)
            records = settled(client, ledger, frames)
            made = client.get("/state").json()["made"][name]
            assert made == frames
            words = "".join(f" word{number}" for number in range(made))
            record = records[-1]
            assert record["output_tokens"] == len(encoding.encode_ordinary(words))
            assert record["outcome"] == "client_disconnect"
            assert record["basis"] == "counted"
        assert len(records) == FRAMES
        assert len({record["request_id"] for record in records}) == FRAMES
        deadline = time.monotonic() + DEADLINE_S
        while client.get("/state").json()["tasks"] > tasks:
            assert time.monotonic() < deadline, "something is left running"
            time.sleep(0.02)
