"""A model app that streams 40 frames, and waits after each until its client has seen it."""

import asyncio
import os
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from inf_middleware import Account, CostLedger, Tier, TierLimiter, TokenMeter
from inf_middleware.stores.memory import MemoryStore
from tests.apps import delta, event
from tests.live.model_servers import FRAMES

ACCOUNT = Account("acme", tier=Tier("Wide", 100, 100_000, 100_000_000))

made: dict[str, int] = {}
seen: dict[str, int] = {}
running: set[str] = set()
store = MemoryStore()
changed = asyncio.Event()


async def chat(request: Request) -> StreamingResponse:
    name = request.headers["x-name"]

    async def frames() -> Any:
        running.add(name)
        try:
            for number in range(FRAMES):
                made[name] = number + 1
                yield event(delta(f" word{number}"))
                # No frame ahead of the client, so that the bill has one right amount.
                while seen.get(name, 0) <= number:
                    changed.clear()
                    await changed.wait()
            yield event("[DONE]")
        finally:
            running.discard(name)

    return StreamingResponse(frames(), media_type="text/event-stream")


async def saw(request: Request) -> JSONResponse:
    """Hear from a client how many frames it has seen."""
    seen[request.path_params["name"]] = int(request.query_params["frames"])
    changed.set()
    return JSONResponse({})


async def state(request: Request) -> JSONResponse:
    return JSONResponse(
        {
            "made": made,
            "running": len(running),
            "in_progress": store.in_progress("acme"),
            "tasks": len(asyncio.all_tasks()),
        }
    )


app = Starlette(
    routes=[
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/saw/{name}", saw),
        Route("/state", state),
    ]
)
app.add_middleware(TokenMeter)
app.add_middleware(TierLimiter, storage=store, accounts={"sk-one": ACCOUNT})
app.add_middleware(CostLedger, ledger=f"sqlite:///{os.environ['TEST_LEDGER']}")
