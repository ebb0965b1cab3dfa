"""A ledger that is waited for no longer than was said: then its bill is kept on this host.

Whichever is durable first is told. A bill that is kept may come to be committed all the same: it
has one id, and is one debit when it is handed over. Of a bill that cannot be kept the ledger alone
tells what became of it, however long that takes: who is told that it failed must not be billed.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable
from typing import NamedTuple

from inf_middleware.domain.errors import BillKept, LedgerUnavailable
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.spool import SpoolingLedger

# A commit takes a busy disk tenths of a second: less says nothing of a ledger.
WITHIN_S_MIN = 1.0

# How often it is looked who waits. Looks are counted, and no time is taken: where an event loop
# stood still for long nobody is late who was answered meanwhile.
LOOK_S = 0.25


class _Settling(NamedTuple):
    """A settlement that is waited for, and how many looks there had been `before`."""

    event: BillingEvent
    durable: "asyncio.Future[None]"
    before: int


class _OfLoop:
    """Who waits on one event loop, the oldest first; `timer` runs while somebody does."""

    def __init__(self) -> None:
        self.waiting: deque[_Settling] = deque()
        self.looks = 0
        self.timer: asyncio.TimerHandle | None = None
        self.keeping: set[asyncio.Task[None]] = set()


class InTime:
    """A ledger with a spool, whose settlements are durable in one of them after `within_s`."""

    def __init__(self, ledger: SpoolingLedger, within_s: float) -> None:
        self._ledger = ledger
        self._looks_max = round(max(within_s, WITHIN_S_MIN) / LOOK_S)
        self._of_loops: dict[asyncio.AbstractEventLoop, _OfLoop] = {}

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Hand over a settlement at once; the awaitable ends when it is durable.

        Raises:
            BillKept: From the awaitable; it is durable on this host.
            LedgerUnavailable: From the awaitable; nothing was recorded.
        """
        settling = self._ledger.settle(event)
        if type(settling) is asyncio.Future:
            durable = settling
        elif self._ledger.is_active:
            return settling  # it is being kept
        else:
            durable = _followed(settling)
        loop = durable.get_loop()
        of_loop = self._of_loops.get(loop)
        if of_loop is None:
            for ended in [one for one in list(self._of_loops) if one.is_closed()]:
                del self._of_loops[ended]
            of_loop = self._of_loops[loop] = _OfLoop()
        waiting = of_loop.waiting
        while waiting and waiting[0].durable.done():  # at once: what is kept alive costs
            waiting.popleft()
        waiting.append(_Settling(event, durable, of_loop.looks))
        if of_loop.timer is None:
            of_loop.timer = loop.call_later(LOOK_S, self._look, loop, of_loop)
        return durable

    async def aclose(self) -> None:
        """Stop, and close the ledger."""
        await self._ledger.aclose()

    def _look(self, loop: asyncio.AbstractEventLoop, of_loop: _OfLoop) -> None:
        of_loop.looks += 1
        waiting = of_loop.waiting
        while waiting and (
            waiting[0].durable.done() or of_loop.looks - waiting[0].before >= self._looks_max
        ):
            one = waiting.popleft()
            if not one.durable.done():
                task = loop.create_task(self._keep(one), name="inf-middleware-kept")
                of_loop.keeping.add(task)
                task.add_done_callback(of_loop.keeping.discard)
        of_loop.timer = loop.call_later(LOOK_S, self._look, loop, of_loop) if waiting else None

    async def _keep(self, late: _Settling) -> None:
        try:
            await self._ledger.keep(late.event)
        except LedgerUnavailable:
            return
        if not late.durable.done():  # and not as if it had: others hear it from the ledger
            late.durable.set_exception(BillKept("the ledger has not answered; the bill is kept"))


def _followed(settling: Awaitable[None]) -> "asyncio.Future[None]":
    """Return a future that ends as a coroutine or a task does, unless it is ended before."""
    task = asyncio.ensure_future(settling)
    durable: asyncio.Future[None] = task.get_loop().create_future()

    def tell(task: "asyncio.Future[None]") -> None:
        error = None if task.cancelled() else task.exception()
        if durable.done():
            return
        if task.cancelled():
            durable.cancel()
        elif error is not None:
            durable.set_exception(error)
        else:
            durable.set_result(None)

    task.add_done_callback(tell)
    durable.add_done_callback(lambda _: task.cancel())
    return durable
