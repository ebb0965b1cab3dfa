"""The example of two FastAPI workers on one Redis does what it says, by its own command."""

import concurrent.futures
import sys
from pathlib import Path
from typing import Any

import httpx

from inf_middleware import Tiers
from tests.kit import records_of
from tests.processes import Running, free_ports, wait_until
from tests.redis_servers import redis_server

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
CHAT = {"model": "inf-chat-v1", "max_tokens": 5, "messages": [{"role": "user", "content": "tea?"}]}


def test_an_account_has_its_requests_once_whichever_worker_answers(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    ledger = tmp_path / "ledger.db"
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "fastapi_redis:app"]
    command += ["--workers", "2", "--port", str(port)]
    with redis_server() as redis:
        environment = {"STORAGE": redis.uri, "LEDGER": f"sqlite:///{ledger}"}
        server = Running(command, tmp_path / "out", env=environment)
        try:
            wait_until(
                lambda: server.said().count("startup complete") == 2, "two workers", timeout_s=60
            )

            def ask(key: str) -> Any:
                # A connection of its own each time: either worker may take it.
                return httpx.post(
                    f"http://127.0.0.1:{port}/v1/chat/completions",
                    json=CHAT,
                    headers={"authorization": f"Bearer {key}"},
                    timeout=30,
                    trust_env=False,
                )

            answers = [ask("sk-trial") for _ in range(14)]
            assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 4
            assert "Level Trial allows 10 requests per minute" in answers[-1].text
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                team = list(pool.map(ask, ["sk-team"] * 40))
            assert {answer.status_code for answer in team} <= {200, 429}
            served = [answer.json() for answer in [*answers, *team] if answer.status_code == 200]
            processes = {
                answer["choices"][0]["message"]["content"].split()[-1] for answer in served
            }
            assert len(processes) == 2
        finally:
            server.stop()
    assert len(records_of(ledger)) == len(served)


def test_the_example_of_levels_is_a_tier_file() -> None:
    tiers = Tiers.from_toml((EXAMPLES / "tiers.toml").read_text("utf-8"))
    assert [tier.name for tier in tiers.tiers] == ["Trial", "Team"]
    own, of_model = tiers.for_recharge("1000").groups_for("inf-chat-int-v1")
    assert (of_model.concurrency, of_model.rates[0].limit) == (2, 20)
    assert [rate.metric for rate in own.rates] == ["tokens"]
