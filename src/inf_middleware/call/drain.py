"""Letting the app finish for a client that has left, so that the server's own usage is billed."""

import anyio

from inf_middleware.call.record import Call

# Answers that are made for nobody, at a time in one process: more of them would be load that
# nobody pays attention to. A call beyond hears of the disconnect at once.
DRAINS_MAX = 100

# How long one of them may go on: the longest answer that is worth its bill.
DRAIN_TIMEOUT_S = 120.0


class Drains:
    """Counts the calls of this process that are finished for nobody."""

    def __init__(self, drains_max: int = DRAINS_MAX, timeout_s: float = DRAIN_TIMEOUT_S) -> None:
        self._max = drains_max
        self._timeout_s = timeout_s
        self._deadlines: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._deadlines)

    def may_begin(self, call: Call) -> bool:
        """Tell whether the call is drained when its client leaves, while there is room."""
        return call.billing is not None and call.billing.drains

    def begin(self, call: Call) -> bool:
        """Begin to drain a call whose client has left; False where it is not to be drained."""
        if call.id in self._deadlines:
            return True
        if not self.may_begin(call) or len(self._deadlines) >= self._max:
            return False
        self._deadlines[call.id] = anyio.current_time() + self._timeout_s
        call.draining = True
        return True

    async def hide(self, call: Call) -> None:
        """Wait as if the client were there, until the drain has taken too long."""
        await anyio.sleep(max(self._deadlines[call.id] - anyio.current_time(), 0))

    def end(self, call: Call) -> None:
        """Forget a call that is over."""
        self._deadlines.pop(call.id, None)


# One per process: what it bounds is the load of the process.
drains = Drains()
