"""Whether calls can be recorded: once one could not be, none is served before one can be again."""

import time
from collections.abc import Awaitable, Callable

from inf_middleware.domain.errors import LedgerUnavailable

# How often a ledger that failed is tried; callers are told to come back after as long.
PROBE_S = 1.0


class LedgerHealth:
    """Remembers that a settlement failed for good.

    `is_down`: calls are refused until the ledger can be written again, which `probe` tells; without
    one, a call a second tries it. `clock` is in seconds.
    """

    def __init__(
        self,
        probe: Callable[[], Awaitable[None]] | None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._probe = probe
        self._clock = clock
        self.is_down = False
        self._next_probe = 0.0

    def failed(self) -> None:
        """Note that a call was served and could not be recorded."""
        self.is_down = True
        self._next_probe = self._clock() + PROBE_S

    async def ready(self) -> bool:
        """Tell whether a call may be served."""
        if not self.is_down:
            return True
        now = self._clock()
        if now < self._next_probe:
            return False
        self._next_probe = now + PROBE_S
        if self._probe is not None:
            try:
                await self._probe()
            except LedgerUnavailable:
                return False
        self.is_down = False
        return True
