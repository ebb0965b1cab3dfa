"""What works beside requests, on the event loop of one of them."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """One task beside requests; once it has ended nothing of it is held.

    A task that failed or was cancelled keeps its error, and that the frames it went through. From
    Python 3.12 on these keep all that called them, up to whoever ran the event loop: an app among
    the variables there would be in use for as long as anybody keeps the task.
    """

    __slots__ = ("_task", "loop")

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None  # it began on this one last

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task, until it has ended."""
        task = self._task
        return None if task is None or task.done() else task

    @property
    def is_running(self) -> bool:
        """Whether it goes on: on the running event loop, or on that of another thread."""
        task, loop = self._task, self.loop
        if task is None or loop is None or task.done():
            return False
        return loop is asyncio.get_running_loop() or loop.is_running()

    def start(self, work: Callable[[], Coroutine[Any, Any, None]], name: str) -> None:
        """Begin on the running event loop."""
        self.loop = asyncio.get_running_loop()
        self._task = task = self.loop.create_task(_to_its_end(work), name=name)
        task.add_done_callback(self._ended)

    async def end(self) -> None:
        """Cancel it, and wait for that, where it is of the running event loop."""
        task = self.task
        if task is not None and self.loop is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._task is task:
            self._task = None


async def _to_its_end(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    # Cancelled it has ended, without an error: `asyncio.run` cancels what is left, and its own
    # frame, which keeps the task, would be kept by that error until the cycle is found.
    with contextlib.suppress(asyncio.CancelledError):
        await work()
