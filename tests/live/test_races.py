"""Two worker processes on one SQLite file, raced over real HTTP: what is paid for, just once."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from inf_middleware import open_ledger
from tests.kit import records_of
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
    env = {"RACE_LEDGER": uri, "PYTHONPATH": str(ROOT)}
    server = Running(command, folder / "uvicorn.txt", env=env)
    try:
        wait_until(lambda: server.said().count("startup complete") >= 2, "two workers")
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
        async with httpx.AsyncClient(limits=limits, timeout=60, headers=headers) as client:
            return await asyncio.gather(*(client.post(url, json=body) for _ in range(calls)))


def debits(path: Path) -> list[dict[str, Any]]:
    return [record for record in records_of(path) if record["kind"] == "usage"]


@pytest.mark.parametrize("key", [None, "once"], ids=["racing", "idempotent"])
def test_calls_that_race_in_two_workers(key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    uri = f"sqlite:///{path}"
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
    bills = debits(path)
    assert sorted(bill["request_id"] for bill in bills) == sorted(
        answer.headers["request-id"] for answer in served
    )
    assert [bill["amount_nano"] for bill in bills] == [COST_NANO] * wanted
    assert {bill["overdrawn_nano"] for bill in bills} == {0}

    async def left() -> tuple[int, int]:
        async with await open_ledger(uri) as ledger:
            record = await ledger.account("acme")
            assert record is not None
            return record.balance_nano, record.held_nano

    assert asyncio.run(left()) == ((0 if key is None else 99 * COST_NANO), 0)
