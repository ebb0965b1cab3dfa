"""Sum over events = sum over ledger = what the app itself logged, under load, in every order."""

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openai
import pytest

from examples.model_app import build_app
from inf_middleware import Account, BillingEvent, CostLedger, Tier, TierLimiter
from tests.kit import ORDER_IDS, ORDERS, records_of
from tests.servers import serving

REQUESTS = 500
CONCURRENCY = 32
WIDE = Tier("Wide", 1_000, 1_000_000, 10**9)
ACCOUNTS = {f"sk-{name}": Account(name, tier=WIDE) for name in ("ann", "bob", "cyd")}
MODELS = ["inf-chat-v1", "inf-chat-fin-v1", "inf-med-chat-v1", "inf-chat-int-v1"]
PRICES = dict(zip(MODELS, (10_000, 20_000, 20_000, 20_000), strict=True))


async def drive(url: str, seed: int) -> Counter[str]:
    """Send mixed requests at a bounded concurrency; returns how many of each kind were sent."""
    rng = random.Random(seed)
    kinds: Counter[str] = Counter()
    gate = asyncio.Semaphore(CONCURRENCY)

    async def one(client: openai.AsyncOpenAI, kind: str, number: int) -> None:
        words = " ".join(rng.choice(["tea", "rain", "harbour", "账本", "wind"]) for _ in range(20))
        more: dict[str, Any] = {
            "model": MODELS[number % 4],
            "messages": [{"role": "user", "content": words}],
            "max_tokens": rng.randint(1, 30),
        }
        if kind == "two":
            more["n"] = 2
        if kind == "error":
            more["messages"] = []
        if kind in ("stream", "asked"):
            more["stream"] = True
        if kind == "asked":
            more["stream_options"] = {"include_usage": True}
        async with gate:
            try:
                answer = await client.chat.completions.create(**more)
                if more.get("stream"):
                    async for _ in answer:
                        pass
            except openai.BadRequestError:
                assert kind == "error"

    clients = [
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) for key in ACCOUNTS
    ]
    tasks = []
    for number in range(REQUESTS):
        kind = rng.choice(["json", "stream", "asked", "two", "error"])
        kinds[kind] += 1
        tasks.append(one(clients[number % len(clients)], kind, number))
    await asyncio.gather(*tasks)
    for client in clients:
        await client.close()
    return kinds


@pytest.mark.parametrize("order", ORDERS, ids=ORDER_IDS)
def test_events_ledger_and_the_apps_own_log_agree(order: Any, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    events: list[BillingEvent] = []

    async def send(batch: Sequence[BillingEvent]) -> None:
        events.extend(batch)

    app = build_app(pace_s=0)
    for cls in reversed(order):
        options: dict[str, Any] = {}
        if cls is TierLimiter:
            options = {"accounts": ACCOUNTS}
        if cls is CostLedger:
            options = {"ledger": f"sqlite:///{ledger}", "sinks": {"mine": send}}
        app.add_middleware(cls, **options)
    with serving(app) as url:
        kinds = asyncio.run(drive(url, seed=ORDERS.index(order)))
    # The server has shut down: its sinks were drained before.
    records = records_of(ledger)
    assert len(records) == REQUESTS
    assert len({record["request_id"] for record in records}) == REQUESTS
    assert [event.id for event in events] == [record["request_id"] for record in records]

    logged = app.state.log
    assert len(logged) == REQUESTS - kinds["error"]
    in_app = sum(
        (served["prompt_tokens"] + served["completion_tokens"]) * PRICES[served["model"]]
        for served in logged
    )
    in_ledger = sum(record["amount_nano"] for record in records)
    in_events = sum(int(event.amount_nano) for event in events)
    assert in_app == in_ledger == in_events > 0
    for side in ("input", "output"):
        name = {"input": "prompt_tokens", "output": "completion_tokens"}[side]
        assert sum(r[f"{side}_tokens"] for r in records) == sum(s[name] for s in logged)
    assert sum(r["outcome"] == "upstream_error" for r in records) == kinds["error"]
    assert {r["outcome"] for r in records} <= {"complete", "upstream_error"}
