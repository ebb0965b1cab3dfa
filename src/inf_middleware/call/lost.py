"""What the ledger would not end for a call that is over: ended as soon as the ledger does."""

import asyncio
import contextlib

from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ports import Claims

# Calls remembered; those beyond end with the process.
LOST_MAX = 10_000

# Between two tries, while no request comes: money that is held for nobody is missed by somebody.
RETRY_S = 1.0


class Lost:
    """The calls whose holds and claims are still to be ended, `ids`; without a bill."""

    def __init__(self, claims: Claims | None) -> None:
        self._claims = claims
        self.ids: list[str] = []
        self._task: asyncio.Task[None] | None = None

    def remember(self, call_id: str) -> None:
        """Have a call's hold and claim ended when the ledger is back."""
        if self._claims is None or len(self.ids) >= LOST_MAX:
            return
        self.ids.append(call_id)
        self.begin()

    def begin(self) -> None:
        """Begin to try, where there is anything to be ended and nobody tries yet."""
        loop = asyncio.get_running_loop()
        task = self._task
        if self.ids and (task is None or task.done() or task.get_loop() is not loop):
            self._task = loop.create_task(self._run(), name="inf-middleware-lost")

    async def end(self) -> None:
        """End what the ledger lets end now."""
        while self.ids and self._claims is not None:
            call_id = self.ids.pop()  # first: other requests do the same meanwhile
            ended = False
            try:
                await self._claims.void(call_id)
                ended = True
            except LedgerUnavailable:
                return
            finally:
                if not ended:
                    self.ids.append(call_id)

    async def aclose(self) -> None:
        """End what can be ended, and stop trying."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait([task])
        with contextlib.suppress(LedgerUnavailable):
            await self.end()

    async def _run(self) -> None:
        while self.ids:
            await asyncio.sleep(RETRY_S)
            await self.end()
