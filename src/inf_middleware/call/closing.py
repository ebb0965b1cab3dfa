"""Steps that are taken to their end, whoever cancels meanwhile.

A shielded scope of anyio's keeps off the cancellations of other scopes, but not `Task.cancel`
itself, which is what servers and `asyncio.timeout` use.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any

import anyio


async def to_the_end(step: Coroutine[Any, Any, None]) -> None:
    """Await a step in a task of its own; a cancellation takes effect when it has ended."""
    task = asyncio.ensure_future(step)
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled
    task.result()
