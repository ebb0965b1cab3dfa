"""The examples of sinks, run as a user runs them."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.kit import records_of

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
START_TIMEOUT_S = 30.0


@contextlib.contextmanager
def running(folder: Path, script: str, *options: str) -> Iterator[str]:
    """Run an example on a free port; stopped as a service is, by SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(EXAMPLES / script), *options, "--port", str(port)]
    environment = {**os.environ, "METER_KEY": "s3cr3t"}
    with (folder / f"{port}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, text=True
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            assert process.poll() is None, (folder / f"{port}.log").read_text()
            assert time.monotonic() < deadline, "it did not start in time"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(START_TIMEOUT_S)
    assert "Traceback" not in (folder / f"{port}.log").read_text()


def ask(url: str, key: str) -> None:
    body = {"model": "inf-chat-v1", "messages": [{"role": "user", "content": "tea?"}]}
    headers = {"authorization": f"Bearer {key}"}
    answered = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    assert answered.status_code == 200


def spent_nano(ledger: Path, account: str) -> int:
    return sum(row["amount_nano"] for row in records_of(ledger) if row["account"] == account)


def test_the_custom_sink_sums_up_what_the_ledger_says_and_refuses_strangers(
    tmp_path: Path,
) -> None:
    with running(tmp_path, "custom_sink.py") as url:
        for key in ("sk-acme", "sk-stray", "sk-acme"):
            ask(url, key)
    with contextlib.closing(sqlite3.connect(tmp_path / "totals.sqlite")) as db:
        totals = dict(db.execute("SELECT account, spent_nano FROM customer"))
    assert totals == {"acme": spent_nano(tmp_path / "inf-ledger.db", "acme")}
    assert totals["acme"] > 0
    command = [str(Path(sys.executable).with_name("inf-middleware")), "events", "dead-letters"]
    shown = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True)
    (letter,) = json.loads(shown.stdout)
    assert (letter["account"], letter["reason"]) == ("stray", "stray is no customer")


def test_the_http_sink_brings_the_receiver_what_the_ledger_says(tmp_path: Path) -> None:
    with running(tmp_path, "http_sink.py", "receive") as far_end:
        options = ("serve", "--events-url", f"{far_end}/api/v1/events")
        with running(tmp_path, "http_sink.py", *options) as url:
            ask(url, "sk-acme")
            ask(url, "sk-acme")
        sums: Any = httpx.get(f"{far_end}/sums").json()
    assert sums == {"acme": spent_nano(tmp_path / "inf-ledger.db", "acme")}
    assert sums["acme"] > 0
