"""Waking who waits, on whichever event loop of the process: a server may run one per thread."""

import asyncio
from collections.abc import Callable
from typing import TypeAlias

Turn: TypeAlias = asyncio.Future[None]


def where_it_waits(turn: Turn, step: Callable[[Turn], None]) -> bool:
    """Take a step on the event loop of a turn; False where that has ended, and its turns with it.

    At once where that loop is the running one.
    """
    loop = turn.get_loop()
    if loop is asyncio.get_running_loop():
        step(turn)
        return True
    try:
        loop.call_soon_threadsafe(step, turn)
    except RuntimeError:
        return False
    return True


class Bell:
    """Wakes the one who listens, rung from any event loop; rung before, it is heard at once."""

    __slots__ = ("_is_rung", "_turn")

    def __init__(self) -> None:
        self._is_rung = False
        self._turn: Turn | None = None

    def ring(self) -> None:
        """Wake who listens, or who will."""
        self._is_rung = True
        if (turn := self._turn) is not None:
            where_it_waits(turn, _wake)

    def still(self) -> None:
        """Forget that it was rung."""
        self._is_rung = False

    async def heard(self) -> None:
        """Wait until it is rung; one at a time."""
        # Before it looks: who rings in another thread does both in the other order.
        self._turn = asyncio.get_running_loop().create_future()
        try:
            if not self._is_rung:
                await self._turn
        finally:
            self._turn = None


def _wake(turn: Turn) -> None:
    if not turn.done():
        turn.set_result(None)
