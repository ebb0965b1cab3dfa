"""The leases of the calls that run in this process: renewed together, a third of a lease apart.

A timer runs while there are calls, and ends by itself a turn after the last; so nothing is left
behind, and nothing is done per chunk.
"""

import asyncio
import logging
from typing import Protocol

from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Admission, Held
from inf_middleware.ports import LimitStore

_log = logging.getLogger("inf_middleware.limits")

# Two renewals may be lost before a lease is.
RENEWALS_PER_LEASE = 3


class Holder(Protocol):
    """A call that holds an admission."""

    admission: Admission | None

    @property
    def tokens_so_far(self) -> int:
        """The tokens it is known to have used."""
        ...


class Leases:
    """Renews what calls hold; `lost` counts the leases that ran out all the same."""

    def __init__(self, store: LimitStore, lease_s: float) -> None:
        self.lost = 0
        self._store = store
        self._every_s = lease_s / RENEWALS_PER_LEASE
        self._of_loops: dict[asyncio.AbstractEventLoop, _OfLoop] = {}

    def hold(self, holder: Holder) -> None:
        """Begin to renew the lease of a call."""
        loop = asyncio.get_running_loop()
        of_loop = self._of_loops.get(loop)
        if of_loop is None:
            of_loop = self._of_loops[loop] = _OfLoop()
        of_loop.is_idle = False
        if holder.admission is not None:
            of_loop.holders[holder.admission.ask.call_id] = holder
        if of_loop.timer is None:
            self._renew_soon(loop, of_loop)

    def let_go(self, call_id: str) -> None:
        """Stop renewing the lease of a call."""
        of_loop = self._of_loops.get(asyncio.get_running_loop())
        if of_loop is not None:
            of_loop.holders.pop(call_id, None)

    @property
    def held(self) -> list[Admission]:
        """What running calls hold."""
        return [
            holder.admission
            for of_loop in self._of_loops.copy().values()
            for holder in of_loop.holders.copy().values()
            if holder.admission is not None
        ]

    async def aclose(self) -> None:
        """Stop renewing."""
        of_loop = self._of_loops.pop(asyncio.get_running_loop(), None)
        if of_loop is not None:
            if of_loop.timer is not None:
                of_loop.timer.cancel()
            if of_loop.task is not None:
                of_loop.task.cancel()
                await asyncio.wait([of_loop.task])

    def _renew_soon(self, loop: asyncio.AbstractEventLoop, of_loop: "_OfLoop") -> None:
        of_loop.timer = loop.call_later(self._every_s, self._renew_soon_if_used, loop, of_loop)
        if of_loop.task is None or of_loop.task.done():
            of_loop.task = loop.create_task(self._renew(of_loop), name="inf-middleware-leases")

    def _renew_soon_if_used(self, loop: asyncio.AbstractEventLoop, of_loop: "_OfLoop") -> None:
        of_loop.timer = None
        if not of_loop.holders and of_loop.is_idle:
            del self._of_loops[loop]
            return
        of_loop.is_idle = True
        self._renew_soon(loop, of_loop)

    async def _renew(self, of_loop: "_OfLoop") -> None:
        held = [
            Held(holder.admission, holder.tokens_so_far)
            for holder in of_loop.holders.values()
            if holder.admission is not None
        ]
        try:
            lost = await self._store.renew(held)
        except LimitsUnavailable as error:
            _log.warning("%d leases could not be renewed: %s", len(held), error)
            return
        except Exception:
            _log.exception("%d leases could not be renewed", len(held))
            return
        # What has ended meanwhile is not lost.
        lost = lost & of_loop.holders.keys()
        for call_id in lost:
            del of_loop.holders[call_id]
        if lost:
            self.lost += len(lost)
            _log.warning(
                "%d leases ran out before they were renewed: their requests finish without a slot",
                len(lost),
            )


class _OfLoop:
    """The calls of one event loop; `is_idle`: none has come since the last renewal."""

    __slots__ = ("holders", "is_idle", "task", "timer")

    def __init__(self) -> None:
        self.holders: dict[str, Holder] = {}
        self.is_idle = False
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
