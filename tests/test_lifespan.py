"""With a lifespan, parts open before the first request and close after the last."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from inf_middleware import BillingEvent, ConfigError, CostLedger, Gate
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.events import event_of
from tests.kit import CHAT, records_of

APP = """
from starlette.applications import Starlette
from inf_middleware import Gate, TierLimiter

async def app(scope, receive, send):
    await receive()
    await send({{"type": "lifespan.startup.complete"}})

{made}
"""
GOLD = f'[[account]]\nid = "acme"\ntier = "gold"\nkeys = ["sha256:{0:064}"]\n'


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ("app = Gate(app, accounts='gold.toml')", "gold.toml: account 1 (acme): there is no tier"),
        ("app = Gate(app, counter='t.json')", "t.json is no tokenizer.json"),
        (
            "app = Starlette(); app.add_middleware(TierLimiter, accounts='gold.toml')",
            "gold.toml: account 1 (acme): there is no tier 'gold'",
        ),
        (
            "app = Starlette(); app.add_middleware(Gate, counter='t.json')",
            "t.json is no tokenizer.json",
        ),
        (
            "app = Starlette(); app.add_middleware(TierLimiter, accounts='broken.toml')",
            "ERROR:    broken.toml: Invalid value",
        ),
        (
            "app = Starlette(); app.add_middleware(Gate); app.add_middleware(Gate, storages='x')",
            "there is no option storages; did you mean storage?",
        ),
    ],
)
def test_a_server_stops_at_start_and_says_why(made: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP.format(made=made))
    (tmp_path / "gold.toml").write_text(GOLD)
    (tmp_path / "broken.toml").write_text("a = [")
    (tmp_path / "t.json").write_text("{}")
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=30)
    assert done.returncode == 3, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_who_constructs_us_in_a_lifespan_of_their_own_is_told_at_once() -> None:
    told: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            app.mount("/llm", Gate(JsonApp({}), storage="nonsense://x"))
        except ConfigError as error:
            told.append(str(error))
        yield

    app = Starlette(lifespan=lifespan)
    app.add_middleware(Gate)
    asyncio.run(through(app, "startup", "shutdown"))
    assert "nonsense" in told[0]


def test_without_a_lifespan_what_cannot_hold_is_raised_by_the_first_request(tmp_path: Path) -> None:
    (tmp_path / "gold.toml").write_text(GOLD)
    gate = Gate(JsonApp({}), accounts=tmp_path / "gold.toml")
    with pytest.raises(ConfigError, match="there is no tier 'gold'"):
        asyncio.run(post(gate, CHAT, key="sk-demo"))


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
