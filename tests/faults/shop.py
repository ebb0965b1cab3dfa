"""A model server with all three, as servers start it in processes of their own.

`SHOP` in the environment: the options of `Gate`, as JSON. A request's `metadata` tells how long its
answer takes (`hold_s`), and for how long it blocks the event loop (`stall_s`).
"""

import asyncio
import json
import os
import time
from typing import Any

from inf_middleware import Gate
from tests.apps import JsonApp, completion, read_all, usage_of
from tests.kit import Closing

INPUT_TOKENS, OUTPUT_TOKENS = 8, 10


async def model(scope: Any, receive: Any, send: Any) -> None:
    asked = json.loads(await read_all(receive))["metadata"]
    if "stall_s" in asked:
        time.sleep(asked["stall_s"])  # noqa: ASYNC251 - the fault
    await asyncio.sleep(float(asked.get("hold_s", 0)))
    answer = JsonApp(completion(usage=usage_of(INPUT_TOKENS, OUTPUT_TOKENS)))

    async def nothing_more() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    await answer(scope, nothing_more, send)


def build() -> Any:
    """The factory that servers call."""
    return Gate(Closing(model), **json.loads(os.environ["SHOP"]))
