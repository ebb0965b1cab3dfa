"""A metered model app on any of the servers, each in a process of its own, and its ledger."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

START_TIMEOUT_S = 60.0
FRAMES = 40

SERVERS = {
    "uvicorn-h11": ["uvicorn", "--http", "h11", "--log-level", "warning", "--port"],
    "uvicorn-httptools": ["uvicorn", "--http", "httptools", "--log-level", "warning", "--port"],
    "hypercorn": ["hypercorn", "--bind"],
    "granian": ["granian", "--interface", "asgi", "--no-ws", "--log-level", "warning", "--port"],
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def serving_process(server: str, app: str, ledger: Path) -> Iterator[int]:
    """Serve `app` ("module:name") in a process; yields its port."""
    port = free_port()
    address = f"127.0.0.1:{port}" if server == "hypercorn" else str(port)
    command = [sys.executable, "-m", *SERVERS[server], address, app]
    process = subprocess.Popen(
        command,
        env={**os.environ, "TEST_LEDGER": str(ledger)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline, "the server did not start in time"
            with contextlib.suppress(httpx.HTTPError):
                httpx.get(f"http://127.0.0.1:{port}/state", timeout=5).raise_for_status()
                break
            time.sleep(0.05)
        yield port
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()
