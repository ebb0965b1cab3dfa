"""The counters of one group of limits of one account: its leases and its windows.

A lease is the slot and the reservation of one request. It ends by settlement; by itself when it is
not renewed in time, with what it is known to have used: then its slot is free, it is remembered as
lost for a while, and its settlement only adds what was used beyond. `state.lua` does the same.
"""

from typing import TypeAlias

from inf_middleware.domain.limits import GroupReading
from inf_middleware.domain.rates import MICROSECONDS, LimitGroup, Metric, Rate
from inf_middleware.stores.window import RollingWindow

# How long a lost lease waits for its settlement. Its request was cut off from the store for longer
# than a lease; if it comes later still, its tokens since the last renewal go uncounted here.
FORGET_US = 300 * MICROSECONDS


class _Lease:
    __slots__ = ("admitted_us", "is_lost", "reserved", "taken", "until_us", "used")

    def __init__(self, now_us: int, lease_us: int, reserved: int) -> None:
        self.admitted_us = now_us
        self.until_us = now_us + lease_us
        self.reserved = reserved  # and what a renewal has told beyond
        self.taken = reserved  # of that, what is in the windows since admission
        self.used = 0
        self.is_lost = False


# A rate, whether it is one of requests, and the window that counts for it.
_Rated: TypeAlias = tuple[Rate, bool, RollingWindow]


class Counters:
    """Counts for one group; every call at a moment begins with `pass_time`."""

    __slots__ = ("_earliest_us", "_group", "_leases", "_rated", "_windows", "running")

    def __init__(self) -> None:
        self.running = 0
        self._earliest_us = 0  # no lease ends before
        self._leases: dict[str, _Lease] = {}
        self._group: LimitGroup | None = None  # that was asked for last
        self._rated: list[_Rated] = []  # of that
        self._windows: dict[tuple[Metric, int], RollingWindow] = {}

    def pass_time(self, now_us: int) -> None:
        """End the leases whose time is over, and let go of what has left the windows."""
        for window in self._windows.values():
            window.leave(now_us)
        if not self._leases or now_us < self._earliest_us:
            return
        for call_id, lease in list(self._leases.items()):
            if lease.until_us > now_us:
                continue
            if lease.is_lost:
                del self._leases[call_id]
                continue
            self._give_back(lease, lease.reserved - lease.used)
            lease.reserved = lease.used
            lease.until_us = now_us + FORGET_US
            lease.is_lost = True
            self.running -= 1
        self._earliest_us = min((lease.until_us for lease in self._leases.values()), default=0)

    def is_idle(self) -> bool:
        """Tell whether nothing is counted and nobody is awaited."""
        return not self._leases and not any(map(len, self._windows.values()))

    def holds(self, call_id: str) -> bool:
        """Tell whether a call has a lease here, lost or not."""
        return call_id in self._leases

    def fits(self, group: LimitGroup, tokens: int, now_us: int) -> bool:
        """Tell whether a request with `tokens` fits now."""
        if group.concurrency is not None and self.running >= group.concurrency:
            return False
        for rate, of_requests, window in self._rated_for(group, now_us):
            if window.total + (1 if of_requests else tokens) > rate.limit:
                return False
        return True

    def read(self, group: LimitGroup, tokens: int, now_us: int) -> GroupReading:
        """Return how the group stands, and how long until a request with `tokens` fits."""
        is_full = group.concurrency is not None and self.running >= group.concurrency
        readings = [
            window.read(now_us, 1 if of_requests else tokens, rate.limit)
            for rate, of_requests, window in self._rated_for(group, now_us)
        ]
        return GroupReading(self.running, is_full, readings)

    def take(
        self, call_id: str, group: LimitGroup, tokens: int, now_us: int, lease_us: int
    ) -> None:
        """Take a slot, a request and a reservation."""
        for _, of_requests, window in self._rated_for(group, now_us):
            amount = 1 if of_requests else tokens
            if amount:
                window.add(now_us, amount)
        lease = _Lease(now_us, lease_us, tokens)
        if not self._leases or lease.until_us < self._earliest_us:
            self._earliest_us = lease.until_us
        self._leases[call_id] = lease
        self.running += 1

    def renew(self, call_id: str, used: int, now_us: int, lease_us: int) -> bool:
        """Lengthen a lease that is still held; False where it is not."""
        lease = self._leases.get(call_id)
        if lease is None or lease.is_lost:
            return False
        lease.until_us = now_us + lease_us
        lease.used = max(lease.used, used)
        if used > lease.reserved:
            self._add(used - lease.reserved, now_us)
            lease.reserved = used
        return True

    def settle(self, call_id: str, tokens: int | None, now_us: int) -> None:
        """End a lease with the tokens really used (None: what was reserved); once."""
        lease = self._leases.pop(call_id, None)
        if lease is None:
            return
        if not lease.is_lost:
            self.running -= 1
        if tokens is None:
            return
        if tokens < lease.reserved:
            self._give_back(lease, lease.reserved - tokens)
        elif tokens > lease.reserved:
            self._add(tokens - lease.reserved, now_us)

    def _rated_for(self, group: LimitGroup, now_us: int) -> list[_Rated]:
        """Return the rates of a group, with the windows that count for them."""
        if self._group is not group:  # the limits of an account hardly ever change
            self._group = group
            self._rated = [
                (rate, rate.metric == "requests", self._window(rate.metric, rate.window_us, now_us))
                for rate in group.rates
            ]
        return self._rated

    def _window(self, metric: Metric, window_us: int, now_us: int) -> RollingWindow:
        window = self._windows.get((metric, window_us))
        if window is None:
            window = self._windows[metric, window_us] = RollingWindow(window_us, now_us)
        return window

    def _give_back(self, lease: _Lease, tokens: int) -> None:
        # No more than it took: an overrun that was told in error stays where it was recorded.
        tokens = min(tokens, lease.taken)
        lease.taken -= tokens
        if tokens:
            for (metric, _), window in self._windows.items():
                if metric == "tokens":
                    window.give_back(lease.admitted_us, tokens)

    def _add(self, tokens: int, now_us: int) -> None:
        for (metric, _), window in self._windows.items():
            if metric == "tokens":
                window.add(now_us, tokens)
