"""Bills that were kept, handed to the ledger; which of them it never takes is told with care."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ports import Ledger

# One that fails is offered alone so many times more, and the ledger takes another after each: the
# first may fail because the ledger is away, the second then fails between two that are taken.
_TRIES_ALONE = 2

# Between two tries of a file of which nothing is decided; each wait is twice the one before. A try
# writes 256 KiB, in two commits: at the longest wait 3 MB an hour, and once a second 1 GB.
UNDECIDED_S_FIRST = 1.0
UNDECIDED_S_MAX = 300.0


class Undecided(LedgerUnavailable):
    """A ledger that can be written takes none of some bills; of no others is it known."""


class _Wait(NamedTuple):
    size: int
    until: float
    for_s: float
    why: str


class Patience:
    """Leaves files of which nothing is decided alone, ever longer; one that has grown is not."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waits: dict[Path, _Wait] = {}

    def check(self, path: Path, size: int) -> None:
        """See that a file may be tried.

        Raises:
            Undecided: It was tried not long ago.
        """
        wait = self._waits.get(path)
        if wait is not None and wait.size == size and self._clock() < wait.until:
            raise Undecided(wait.why)

    def undecided(self, path: Path, size: int, why: str) -> None:
        """Note that a file was tried in vain."""
        before = self._waits.get(path)
        for_s = UNDECIDED_S_FIRST
        if before is not None and before.size == size:
            for_s = min(2 * before.for_s, UNDECIDED_S_MAX)
        self._waits[path] = _Wait(size, self._clock() + for_s, for_s, why)

    def only(self, paths: Collection[Path]) -> None:
        """Forget of all files but these."""
        self._waits = {path: wait for path, wait in self._waits.items() if path in paths}


class HandingOver:
    """Hands what was kept to a ledger, and remembers a bill that it took.

    `offered` is the last bill that the ledger got without being handed over, taken or not.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._probe: Callable[[], Awaitable[None]] | None = getattr(ledger, "probe", None)
        self._is_recorded: Callable[[str], Awaitable[bool]] | None = getattr(
            ledger, "is_recorded", None
        )
        self._taken: BillingEvent | None = None
        self.offered: BillingEvent | None = None

    async def hand_over(self, lines: list[bytes]) -> list[bytes]:
        """Return the lines that the ledger refuses while it takes others, or that are no bills.

        Raises:
            Undecided: It takes none of these; once it has taken another it can be told.
            LedgerUnavailable: It is away, from the beginning or since it took some.
        """
        events = {line: event for line in lines if (event := _event_of(line)) is not None}
        results = await asyncio.gather(
            *(self._ledger.settle(event) for event in events.values()), return_exceptions=True
        )
        refused = [line for line in lines if line not in events]
        failed = {}
        for (line, event), result in zip(events.items(), results, strict=True):
            if isinstance(result, BaseException):
                failed[line] = result
            else:
                self._taken = event
        for line, failure in failed.items():
            if self._taken is None:
                self._taken = await self._taken_before(failure)
            if self._taken is None:
                raise Undecided(f"none of {len(failed)} bills is taken: {failure}") from failure
            if not await self._takes(events[line], self._taken):
                refused.append(line)
        return refused

    async def _taken_before(self, failure: BaseException) -> BillingEvent | None:
        """Return the bill that was offered last, where a ledger that can be written took it.

        Asked for now, and not noted as it is taken: that would cost each call, and this is rare.
        """
        if self._probe is None:
            raise failure
        offered = self.offered
        await self._probe()  # what was offered before it is written by then, or never is
        if offered is None or self._is_recorded is None:
            return None
        if not await self._is_recorded(offered.id):
            return None
        # With its key it would say once more what became of that, which may have changed since.
        return replace(offered, idempotency_key=None)

    async def _takes(self, event: BillingEvent, taken: BillingEvent) -> bool:
        """Tell whether a bill that failed among others is taken; False where others are."""
        for _ in range(_TRIES_ALONE):
            try:
                await self._ledger.settle(event)
            except Exception:  # whatever it is: the others are not to wait for this one
                await self._ledger.settle(taken)  # a bill as they are, but it is written already
                if self._probe is not None:
                    await self._probe()
            else:
                return True
        return False


def _event_of(line: bytes) -> BillingEvent | None:
    try:
        return BillingEvent.decode(line)
    except msgspec.MsgspecError:
        return None
