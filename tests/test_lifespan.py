"""With a lifespan, parts open before the first request and close after the last."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from inf_middleware import BillingEvent, CostLedger, Gate
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.events import event_of
from tests.kit import CHAT, records_of


async def through(app: Any, *kinds: str) -> list[str]:
    sent: list[str] = []
    messages = [{"type": f"lifespan.{kind}"} for kind in kinds]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    return sent


def test_what_an_earlier_run_left_is_delivered_at_start(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    left = event_of()
    taken: list[str] = []

    async def send(events: Sequence[BillingEvent]) -> None:
        taken.extend(event.id for event in events)

    async def go() -> None:
        earlier = SqliteLedger(path)
        await earlier.settle(left)
        await earlier.aclose()
        app = Starlette()
        app.add_middleware(CostLedger, ledger=f"sqlite:///{path}", sinks={"mine": send})
        sent = await through(app, "startup", "shutdown")
        assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]

    asyncio.run(go())
    assert taken == [left.id]


def test_inside_a_mount_and_without_a_lifespan_all_works(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    inner = JsonApp(completion(usage=usage_of(2, 3)))
    gate = Gate(inner, ledger=f"sqlite:///{path}", accounts={"sk-demo": "free"})
    app = Starlette(routes=[Mount("/llm", app=gate)])

    async def go() -> int:
        return (await post(app, CHAT, key="sk-demo", path="/llm/v1/chat/completions")).status

    assert asyncio.run(go()) == 200
    assert records_of(path)[0]["amount_nano"] == 50_000


def test_an_app_that_knows_no_lifespan_stays_so(tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise NotImplementedError

    gate = Gate(app, ledger=f"sqlite:///{tmp_path}/l.db")
    with pytest.raises(NotImplementedError):
        asyncio.run(through(gate, "startup"))
