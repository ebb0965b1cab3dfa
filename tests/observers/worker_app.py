"""A model server for several workers of uvicorn, with its metrics beside it."""

import asyncio
import os
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from inf_middleware import Gate, metrics_app
from tests.apps import JsonApp, completion, usage_of

FOLDER = Path(os.environ.get("SUBJECT_FOLDER", "."))
ANSWER = JsonApp(completion(usage=usage_of(5, 6)))


async def model(scope: Any, receive: Any, send: Any) -> None:
    """Answer; on /v1/slow/… once there is a file `go`, and say before who is waiting."""
    if scope["path"].startswith("/v1/slow"):
        (FOLDER / f"waiting-{os.getpid()}").touch()
        while not (FOLDER / "go").exists():  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.02)
    await ANSWER(scope, receive, send)


def pid(request: Any) -> PlainTextResponse:
    return PlainTextResponse(str(os.getpid()))


def build() -> Any:
    app = Starlette(
        routes=[
            Route("/pid", pid),
            Mount("/metrics", metrics_app()),
            Mount("/", model),
        ]
    )
    app.add_middleware(
        Gate,
        accounts={"sk": "tier5"},
        ledger=f"sqlite:///{FOLDER}/ledger.db",
        sinks={"file": f"jsonl:{FOLDER}/events.jsonl"},
        metrics=["prometheus"],
    )
    return app
