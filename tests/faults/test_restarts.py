"""Servers that end, restart their workers, stall, or know no lifespan: each answer is one bill."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from inf_middleware.cli import main
from inf_middleware.stores.redis import RedisStore
from tests.faults.shop import INPUT_TOKENS, OUTPUT_TOKENS
from tests.kit import lines_of, records_of
from tests.live.client import Client
from tests.processes import Running, free_ports, wait_until
from tests.redis_servers import RedisServer, redis_server

ROOT = Path(__file__).parent.parent.parent

SLOTS = 6
LEASE_S = 1.5
PATIENCE_S = 90.0

TIERS = f"""
[[tier]]
name = "Slots"
concurrency = {SLOTS}
requests_per_minute = 1000000
tokens_per_minute = 1000000000
recharged_from = "0"
"""

APP = "tests.faults.shop:build"


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


class Shop:
    """A server on Redis, a ledger in a file, and a sink; its clients note what they were told."""

    def __init__(
        self,
        redis: RedisServer,
        folder: Path,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        lease_s: float = LEASE_S,
    ) -> None:
        self.redis = redis
        self.deployment = folder.name
        self.ledger = folder / "ledger.db"
        self.taken = folder / "taken.jsonl"
        (folder / "tiers.toml").write_text(TIERS)
        options = {
            "storage": redis.uri,
            "deployment": self.deployment,
            "tiers": str(folder / "tiers.toml"),
            "accounts": {"sk-one": "Slots"},
            "lease_s": lease_s,
            "storage_timeout_s": 5.0,
            "ledger": f"sqlite:///{self.ledger}",
            "sinks": {"mine": f"jsonl:{self.taken}"},
        }
        (self.port,) = free_ports(1)
        environment = {
            "SHOP": json.dumps(options),
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
            **(environment or {}),
        }
        whole = [sys.executable, "-m", *(part.format(port=self.port) for part in command)]
        self.process = Running(whole, folder / "server.txt", env=environment)
        self.answered: list[str] = []
        self.statuses: list[int] = []
        wait_until(self._serves, f"{command[0]} serves", timeout_s=PATIENCE_S)

    def _serves(self) -> bool:
        assert self.process.is_alive, self.process.said()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    async def ask(self, *, key: str | None = None, **metadata: Any) -> None:
        """One request, over a connection of its own: a restarting server closes idle ones."""
        body = {
            "model": "inf-chat-v1",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": OUTPUT_TOKENS,
            "metadata": metadata,
        }
        client = Client()
        try:
            answer = await client.post(self.port, "sk-one", body, idempotency_key=key)
        except (OSError, asyncio.IncompleteReadError):
            self.statuses.append(0)
            return
        finally:
            await client.aclose()
        self.statuses.append(answer.status)
        if answer.status == 200:
            self.answered.append(answer.headers["x-request-id"])

    async def until_running(self, wanted: int) -> None:
        """Return when so many requests of the account that was billed first run."""
        store = RedisStore(self.redis.uri, deployment=self.deployment, timeout_s=5.0)
        account = self.usage()[0]["account"]
        deadline = time.monotonic() + PATIENCE_S
        while max((group.running for group in await store.show(account)), default=0) < wanted:
            assert time.monotonic() < deadline, "they do not run"
            await asyncio.sleep(0.02)
        await store.aclose()

    def usage(self) -> list[dict[str, Any]]:
        return [record for record in records_of(self.ledger) if record["kind"] == "usage"]

    def check(self) -> None:
        """After its end: each answer is one bill, in one event; nothing is held."""
        self.process.stop()
        billed = [one for one in self.usage() if one["outcome"] == "complete"]
        ids = [one["request_id"] for one in billed]
        assert len(set(self.answered)) == len(self.answered) > 0
        assert set(self.answered) <= set(ids)
        assert {one["amount_nano"] for one in billed} == {
            (INPUT_TOKENS + OUTPUT_TOKENS) * 10_000,
        }
        assert {one["amount_nano"] for one in self.usage() if one not in billed} <= {0}
        told = ["ledger", "reconcile", "--ledger", f"sqlite:///{self.ledger}"]
        reconciled = CliRunner().invoke(main, told)
        assert reconciled.exit_code == 0, reconciled.output
        account = billed[0]["account"]

        async def running() -> int:
            store = RedisStore(self.redis.uri, deployment=self.deployment, timeout_s=5.0)
            shown = await store.show(account)
            await store.aclose()
            return max((group.running for group in shown), default=0)

        wait_until(lambda: asyncio.run(running()) == 0, "no slot is held", timeout_s=PATIENCE_S)

    def wait_for_deliveries(self) -> None:
        """Return when the sink has what was billed, in its order, each once."""

        def delivered() -> bool:
            taken = [line["id"] for line in lines_of(self.taken)] if self.taken.exists() else []
            return taken == [one["request_id"] for one in self.usage()]

        wait_until(delivered, "the sink has each bill", timeout_s=PATIENCE_S)


UVICORN = ["uvicorn", "--factory", APP, "--port", "{port}", "--no-access-log"]
GUNICORN = ["gunicorn", f"{APP}()", "--bind", "127.0.0.1:{port}", "--workers", "2", "--preload"]
GUNICORN += ["--worker-class", "uvicorn_worker.UvicornWorker", "--graceful-timeout", "10"]
GUNICORN += ["--max-requests", "8", "--max-requests-jitter", "4"]


def test_workers_that_gunicorn_forks_and_restarts_lose_and_double_no_bill(
    redis: RedisServer, tmp_path: Path
) -> None:
    shop = Shop(redis, tmp_path, GUNICORN)

    async def lane() -> None:
        for _ in range(9):
            await shop.ask(hold_s=0.01)

    async def go() -> None:
        await asyncio.gather(*(lane() for _ in range(SLOTS - 2)))

    try:
        asyncio.run(go())
        assert set(shop.statuses) <= {200, 0}  # 0: closed before it was read
        wait_until(
            lambda: shop.process.said().count("Booting worker") > 2,
            "a worker is started in another's place",
            timeout_s=PATIENCE_S,
        )
        shop.wait_for_deliveries()
        shop.check()
    finally:
        shop.process.stop()


# What the server is told; whether it waits for answers.
ENDS = {
    "asked to, it waits": ([signal.SIGTERM], [], True),
    "asked to, it waits for a second": (
        [signal.SIGTERM],
        ["--timeout-graceful-shutdown", "1"],
        False,
    ),
    "interrupted twice": ([signal.SIGINT, signal.SIGINT], [], False),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_server_that_is_told_to_end_leaves_no_answer_unbilled_and_nothing_held(
    end: str, redis: RedisServer, tmp_path: Path
) -> None:
    signals, options, waits = ENDS[end]
    shop = Shop(redis, tmp_path, [*UVICORN, *options])

    async def go() -> None:
        await shop.ask()
        async with asyncio.TaskGroup() as group:
            for _ in range(SLOTS - 1):
                group.create_task(shop.ask(hold_s=2 if waits else 60))
            await shop.until_running(SLOTS - 1)
            for one in signals:
                os.kill(shop.process.pid, one)
                await asyncio.sleep(0.5)  # two signals at once are one

    try:
        asyncio.run(go())
        wait_until(lambda: not shop.process.is_alive, "it has ended", timeout_s=PATIENCE_S)
        assert len(shop.answered) == (SLOTS if waits else 1)
        shop.check()
    finally:
        shop.process.stop()


def test_on_a_server_without_a_lifespan_each_answer_is_billed_and_delivered(
    redis: RedisServer, tmp_path: Path
) -> None:
    shop = Shop(redis, tmp_path, [*UVICORN, "--lifespan", "off"])

    async def go() -> None:
        for _ in range(5):
            await shop.ask()

    try:
        asyncio.run(go())
        assert shop.statuses == [200] * 5
        shop.wait_for_deliveries()
        shop.check()
    finally:
        shop.process.stop()


def test_an_event_loop_that_stalls_for_5_s_costs_slots_for_a_while_and_no_bill(
    redis: RedisServer, tmp_path: Path
) -> None:
    shop = Shop(redis, tmp_path, UVICORN)

    async def go() -> None:
        await shop.ask()
        await asyncio.gather(
            *(shop.ask(hold_s=1) for _ in range(2)), shop.ask(stall_s=5), shop.ask(hold_s=1)
        )
        assert shop.statuses == [200] * 5
        # No slot was lost for good, and none was made.
        shop.statuses.clear()
        await asyncio.gather(*(shop.ask(hold_s=4) for _ in range(SLOTS + 1)))
        assert sorted(shop.statuses) == [200] * SLOTS + [429]

    try:
        asyncio.run(go())
        shop.wait_for_deliveries()
        shop.check()
    finally:
        shop.process.stop()
