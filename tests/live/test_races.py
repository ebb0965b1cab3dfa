"""Two worker processes on one ledger, raced over real HTTP: what is paid for, just once."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from inf_middleware import open_ledger
from inf_middleware.ledgers.steps import Ask, Steps
from inf_middleware.ledgers.uris import ledger_of
from tests.ledgers.postgres_server import serving_postgres
from tests.processes import Running, free_ports, wait_until

ROOT = Path(__file__).parent.parent.parent

# One message "Hello" of a user with the overhead of chats, as o200k_base counts it, and the cap.
INPUT_TOKENS, CAP = 8, 100
COST_NANO = (INPUT_TOKENS + CAP) * 10_000


def build() -> Any:
    """The factory that uvicorn calls in each worker."""
    import os

    from inf_middleware import CostLedger
    from tests.apps import JsonApp, completion, usage_of
    from tests.kit import Closing

    model = JsonApp(completion(usage=usage_of(INPUT_TOKENS, CAP)))

    class Slow:
        """Works for a moment: the calls are in progress side by side."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await asyncio.sleep(0.2)
            await model(scope, receive, send)

    uri = os.environ["RACE_LEDGER"]
    return CostLedger(Closing(Slow()), ledger=uri, accounts=uri, mode="prepaid")


@contextmanager
def two_workers(folder: Path, uri: str) -> Iterator[str]:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "uvicorn", "--factory", "tests.live.test_races:build"]
    command += ["--port", str(port), "--workers", "2", "--no-access-log"]
    env = {"RACE_LEDGER": uri, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    server = Running(command, folder / "uvicorn.txt", env=env)
    try:
        wait_until(
            lambda: server.said().count("startup complete") >= 2, "two workers", timeout_s=90
        )
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
    finally:
        server.stop()


async def race(uri: str, folder: Path, calls: int, *, paid_for: int, **headers: str) -> list[Any]:
    """Send equal calls at once, each on a connection of its own, with a balance for some."""
    async with await open_ledger(uri) as ledger:
        amount = f"{paid_for * COST_NANO / 10**9:.9f}"
        await ledger.recharge("acme", amount, reference="start")
        key = (await ledger.issue_key("acme")).key
    body = {
        "model": "inf-chat-v1",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": CAP,
    }
    limits = httpx.Limits(max_connections=calls, max_keepalive_connections=0)
    headers["authorization"] = f"Bearer {key}"
    with two_workers(folder, uri) as url:
        async with httpx.AsyncClient(limits=limits, timeout=120, headers=headers) as client:
            return await asyncio.gather(*(client.post(url, json=body) for _ in range(calls)))


async def debits(uri: str) -> list[tuple[str, int, int]]:
    def work() -> Steps[list[Any]]:
        return (
            yield Ask(
                "SELECT request_id, amount_nano, overdrawn_nano FROM request WHERE kind = 'usage'"
            )
        )

    ledger = ledger_of(uri)
    rows = [tuple(row) for row in await ledger.read(work)]
    await ledger.aclose()
    return rows


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/ledger.db"
    else:
        with serving_postgres() as postgres:
            yield postgres.uri()


@pytest.mark.parametrize("key", [None, "once"], ids=["racing", "idempotent"])
def test_calls_that_race_in_two_workers(key: str | None, uri: str, tmp_path: Path) -> None:
    if key is None:
        answers = asyncio.run(race(uri, tmp_path, 100, paid_for=10))
        wanted, other, code = 10, 402, "insufficient_balance"
    else:
        headers = {"idempotency-key": key}
        answers = asyncio.run(race(uri, tmp_path, 50, paid_for=100, **headers))
        wanted, other, code = 1, 409, None
    served = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == other]
    assert (len(served), len(refused)) == (wanted, len(answers) - wanted)
    if code is not None:
        assert {answer.json()["error"]["code"] for answer in refused} == {code}
    assert sorted(asyncio.run(debits(uri))) == sorted(
        (answer.headers["request-id"], COST_NANO, 0) for answer in served
    )

    async def left() -> tuple[int, int]:
        async with await open_ledger(uri) as ledger:
            record = await ledger.account("acme")
            assert record is not None
            return record.balance_nano, record.held_nano

    assert asyncio.run(left()) == ((0 if key is None else 99 * COST_NANO), 0)
