"""The example of accounts by signed tokens does what it says."""

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.kit import records_of

EXAMPLE = Path(__file__).parent.parent.parent / "examples" / "jwt_accounts.py"
START_TIMEOUT_S = 30.0
MESSAGES: Any = [{"role": "user", "content": "tea?"}]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_tokens_of_the_example_are_limited_and_billed_by_their_claims(tmp_path: Path) -> None:
    port, ledger = free_port(), tmp_path / "ledger.db"
    command = [sys.executable, str(EXAMPLE), "--port", str(port), "--ledger", f"sqlite:///{ledger}"]
    with (
        (tmp_path / "out").open("wb") as out,
        subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT) as process,
    ):
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                told = (tmp_path / "out").read_text("utf-8")
                assert process.poll() is None, told
                assert time.monotonic() < deadline, told
                time.sleep(0.05)
            told = (tmp_path / "out").read_text("utf-8")
            tokens = dict(re.findall(r"export (\w+)=(\S+)", told))
            url = f"http://127.0.0.1:{port}/v1"
            for name, limit in (("FREE", "4"), ("ACME", "20")):
                with openai.OpenAI(base_url=url, api_key=tokens[name], max_retries=0) as client:
                    raw = client.chat.completions.with_raw_response.create(
                        model="inf-chat-v1", messages=MESSAGES, max_tokens=5
                    )
                    assert raw.headers["x-ratelimit-limit-requests"] == limit
            with (
                openai.OpenAI(base_url=url, api_key=tokens["ACME"][:-6], max_retries=0) as client,
                pytest.raises(openai.AuthenticationError),
            ):
                client.chat.completions.create(model="inf-chat-v1", messages=MESSAGES)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(START_TIMEOUT_S)
            finally:
                process.kill()  # does nothing to a process that has ended
    records = records_of(ledger)
    assert [(r["account"], r["tier"]) for r in records] == [
        ("free-riders", "Free"),
        ("acme", "Tier1"),
    ]
