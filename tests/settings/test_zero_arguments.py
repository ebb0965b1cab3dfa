"""Without a single argument, configured by the file alone: as servers add middlewares."""

import asyncio
import hashlib
import importlib
import inspect
import json
import secrets
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from inf_middleware import Gate
from tests.driver import Answered, post, scope_of
from tests.kit import CHAT, lines_of, records_of

THREE = ("inf_middleware.TokenMeter", "inf_middleware.TierLimiter", "inf_middleware.CostLedger")
KEY = "sk-served"


class KeyCheck:
    """What vLLM's --api-key adds: the SHA-256 of one token, below /v1, and never for OPTIONS."""

    def __init__(self, app: ASGIApp, tokens: list[str]) -> None:
        self.app = app
        self._tokens = [hashlib.sha256(token.encode()).digest() for token in tokens]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and "/v1" in scope["path"]:
            given = dict(scope["headers"]).get(b"authorization", b"").decode()
            scheme, _, token = given.partition(" ")
            digest = hashlib.sha256(token.encode()).digest()
            known = any(secrets.compare_digest(digest, one) for one in self._tokens)
            if scheme.lower() != "bearer" or not known:
                await JSONResponse({"error": "Unauthorized"}, 401)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def served(*middleware: str, api_key: str | None = None) -> FastAPI:
    """Build an app as vLLM does: `--middleware` in order, the stack built before it is returned."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(body: dict[str, Any]) -> dict[str, Any]:
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        return {"object": "chat.completion", "model": body["model"], "choices": [], "usage": usage}

    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_credentials=False,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    if api_key is not None:
        app.add_middleware(KeyCheck, tokens=[api_key])
    for path in middleware:
        module, name = path.rsplit(".", 1)
        imported = getattr(importlib.import_module(module), name)
        if inspect.isclass(imported):
            app.add_middleware(imported)
        elif inspect.iscoroutinefunction(imported):
            app.middleware("http")(imported)
        else:
            raise ValueError(f"Invalid middleware {path}. Must be a function or a class.")
    app.middleware_stack = app.build_middleware_stack()
    return app


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    (tmp_path / "accounts.toml").write_text(
        f'[[account]]\nid = "acme"\ntier = "tier2"\nkeys = ["sha256:{digest}"]\n'
    )
    (tmp_path / "inf.toml").write_text(
        '[accounts]\nfile = "accounts.toml"\n'
        f'[ledger]\nuri = "sqlite:///{tmp_path}/l.db"\n'
        f'[sinks]\nfile = "jsonl:{tmp_path}/events.jsonl"\n'
    )
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(tmp_path / "inf.toml"))
    return tmp_path


async def through(app: Any, *bodies: dict[str, Any], key: str | None = KEY) -> list[Answered]:
    """Start the app as a server does, send requests, and shut it down."""
    inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
    lifespan = asyncio.create_task(app(scope, inbox.get, sent.put))
    await inbox.put({"type": "lifespan.startup"})
    assert await sent.get() == {"type": "lifespan.startup.complete"}
    answers = [await post(app, body, key=key) for body in bodies]
    await inbox.put({"type": "lifespan.shutdown"})
    assert await sent.get() == {"type": "lifespan.shutdown.complete"}
    await lifespan
    return answers


@pytest.mark.parametrize("flags", [("inf_middleware.Gate",), THREE, THREE[::-1]])
def test_one_flag_and_one_file_meter_limit_and_bill(flags: tuple[str, ...], folder: Path) -> None:
    answers = asyncio.run(through(served(*flags), CHAT, CHAT))
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[1].headers["x-ratelimit-remaining-requests"] == "78"
    records = records_of(folder / "l.db")
    assert [(r["account"], r["amount_nano"]) for r in records] == [("acme", 120_000)] * 2
    events = lines_of(folder / "events.jsonl")
    assert [event["subject"] for event in events] == ["acme", "acme"]


def test_the_stack_is_built_already_and_the_flag_is_the_way_in(folder: Path) -> None:
    app = served()
    with pytest.raises(RuntimeError, match="Cannot add middleware"):
        app.add_middleware(Gate)
    (answered,) = asyncio.run(through(Gate(app), CHAT))  # or wrapped, which always works
    assert answered.status == 200
    assert len(records_of(folder / "l.db")) == 1


def test_an_instance_or_a_factory_is_no_flag_and_ours_are_classes() -> None:
    for path in ("inf_middleware.Gate", *THREE):
        module, name = path.rsplit(".", 1)
        assert inspect.isclass(getattr(importlib.import_module(module), name))


def test_what_the_servers_own_key_check_refuses_costs_nothing(folder: Path) -> None:
    app = served("inf_middleware.Gate", api_key="another")
    (answered,) = asyncio.run(through(app, CHAT))
    assert answered.status == 401
    assert json.loads(answered.body) == {"error": "Unauthorized"}
    (record,) = records_of(folder / "l.db")
    assert record["amount_nano"] == 0


def test_a_browsers_preflight_passes_without_a_key(folder: Path) -> None:
    app = served("inf_middleware.Gate", api_key=KEY)
    headers = [
        ("origin", "https://example.org"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization"),
    ]
    answered = Answered()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        answered.messages.append(message)

    asyncio.run(app(scope_of(method="OPTIONS", headers=headers), receive, send))
    assert answered.status == 200
    assert answered.headers["access-control-allow-origin"] == "*"
    assert not (folder / "l.db").exists()


def test_without_a_file_all_stands_on_its_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app = Starlette()
    app.add_middleware(Gate)
    answered = asyncio.run(post(app, CHAT))
    assert answered.status == 404  # the app's own answer, of a call that was admitted
    assert answered.headers["x-ratelimit-limit-requests"] == "4"


def test_a_mistake_in_the_file_stops_the_server_at_its_start(folder: Path) -> None:
    (folder / "inf.toml").write_text("[accounts]\nfile = 'none.toml'\n")
    with pytest.raises(ValueError, match=r"inf\.toml, line 2, \[accounts\]: accounts: .*none"):
        served("inf_middleware.Gate")
