"""LiteLLM's proxy on the same work, with a mock response: a different job, so shown, not aimed at.

python -m benchmarks.litellm PROGRAM       # `make bench-peers` installs it
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import subjects
from benchmarks.machine import described
from benchmarks.model_app import KEY, MODEL
from benchmarks.served import Server, cpu_s, load
from benchmarks.subjects import Places, subjects_for

_CONFIG = {
    "model_list": [
        {
            "model_name": MODEL,
            "litellm_params": {
                "model": "openai/nothing",
                "api_key": "none",
                "mock_response": "Nothing was thought of here.",
            },
        }
    ],
    "general_settings": {"master_key": KEY},
}

_START_TIMEOUT_S = 120.0
_CONNECTIONS = 16
_SECONDS = 5.0


@contextlib.contextmanager
def _proxy(program: str, folder: Path) -> Iterator[tuple[int, int]]:
    config = folder / "litellm.yaml"
    config.write_text(json.dumps(_CONFIG), "utf-8")  # JSON is YAML, too
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + _START_TIMEOUT_S
    try:
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit((folder / "log").read_text("utf-8", "replace")[-2000:])
            time.sleep(0.2)
        yield port, process.pid
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measure the proxy, the bare app and ours in turn."""
    with tempfile.TemporaryDirectory(dir=".", prefix="bench-") as name:
        folder = Path(name)
        print(json.dumps(described(folder, ""), indent=2))
        print("| what | requests/s | CPU µs per request |\n| --- | ---: | ---: |")
        chosen = subjects_for(Places(folder), (subjects.BARE, subjects.ALL))
        for subject in chosen:
            server = Server(subject, Places(folder))
            try:
                server.wait()
                server.load(_CONNECTIONS, 1.0)
                found = server.load(_CONNECTIONS, _SECONDS)
            finally:
                server.stop()
            print(f"| {subject.name} | {found['per_s']:,.0f} | {found['cpu_us']:.0f} |")
        with _proxy(sys.argv[1], folder) as (port, pid):
            load(port, _CONNECTIONS, 1.0)
            before = cpu_s(pid)
            found = load(port, _CONNECTIONS, _SECONDS)
            took = (cpu_s(pid) - before) / found["requests"] * 1e6
            print(f"| LiteLLM's proxy, mock response | {found['per_s']:,.0f} | {took:.0f} |")


if __name__ == "__main__":
    main()
