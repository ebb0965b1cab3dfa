"""The example of two workers on one PostgreSQL does what it says, by its own commands."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests.ledgers.postgres_server import serving_postgres
from tests.processes import Running, free_ports, wait_until

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
CHAT = {"model": "inf-chat-v1", "max_tokens": 5, "messages": [{"role": "user", "content": "tea?"}]}


def test_what_two_workers_answer_is_billed_once_each_in_one_ledger(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with serving_postgres() as postgres:
        environment = {**os.environ, "LEDGER": postgres.uri()}

        def told(*words: str) -> Any:
            command = [str(Path(sys.executable).with_name("inf-middleware")), *words]
            command += ["--ledger", environment["LEDGER"], "--json"]
            return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

        told("recharge", "acme", "50000", "--reference", "r1")
        key = told("key", "issue", "acme")["key"]
        command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES)]
        command += ["postgres_workers:app", "--workers", "2", "--port", str(port)]
        server = Running(command, tmp_path / "out", env=environment)
        try:
            wait_until(
                lambda: server.said().count("startup complete") == 2, "two workers", timeout_s=60
            )

            def ask(_: int) -> int:
                return httpx.post(
                    f"http://127.0.0.1:{port}/v1/chat/completions",
                    json=CHAT,
                    headers={"authorization": f"Bearer {key}"},
                    timeout=30,
                    trust_env=False,
                ).status_code

            with ThreadPoolExecutor(8) as pool:
                assert list(pool.map(ask, range(24))) == [200] * 24
        finally:
            server.stop()
        assert told("usage", "--by", "account")[0]["requests"] == 24
        assert told("ledger", "reconcile")["ok"] is True
