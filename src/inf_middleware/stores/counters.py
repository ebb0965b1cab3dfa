"""The counters of one group of limits of one account: its leases and its windows.

A lease is the slot and the reservation of one request. It ends by settlement; by itself when it is
not renewed in time, with what it is known to have used: then its slot is free, it is remembered as
lost for a while, and its settlement only adds what was used beyond. `state.lua` does the same.
"""

from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from inf_middleware.domain.limits import GroupReading, Standing, Standings
from inf_middleware.domain.rates import MICROSECONDS, LimitGroup, Rate
from inf_middleware.stores.window import RollingWindow

# How long a lost lease waits for its settlement. Its request was cut off from the store for longer
# than a lease; if it comes later still, its tokens since the last renewal go uncounted here.
FORGET_US = 300 * MICROSECONDS

# Later than any moment.
_NEVER_US = 2**63


class _Lease(msgspec.Struct, gc=False):
    admitted_us: int
    until_us: int
    reserved: int  # and what a renewal has told beyond
    taken: int  # of that, what is in the windows since admission
    used: int = 0
    is_lost: bool = False


# A rate: its limit, whether it is one of requests, and the window that counts for it.
_Rated: TypeAlias = tuple[int, bool, RollingWindow]


class Counters:
    """Counts for one group; moments never go back."""

    __slots__ = (
        "_due_us",
        "_earliest_us",
        "_group",
        "_of_requests",
        "_of_tokens",
        "concurrency",
        "leases",
        "rated",
        "running",
    )

    def __init__(self) -> None:
        self.running = 0
        self.leases: dict[str, _Lease] = {}  # lost ones, too
        # Of the group that was asked for last:
        self.concurrency: int | None = None
        self.rated: list[_Rated] = []
        self._group: LimitGroup | None = None
        self._of_requests: list[RollingWindow] = []
        self._of_tokens: list[RollingWindow] = []
        self._earliest_us = _NEVER_US  # no lease ends before
        self._due_us = _NEVER_US  # nor does anything leave a window

    def pass_time(self, now_us: int) -> None:
        """End the leases whose time is over, and let go of what has left the windows."""
        if now_us < self._due_us:
            return
        due_us = _NEVER_US
        for window in (*self._of_requests, *self._of_tokens):
            window.leave(now_us)
            due_us = min(due_us, window.due_us)
        if now_us >= self._earliest_us:
            self._end_leases(now_us)
        self._due_us = min(due_us, self._earliest_us)

    def is_idle(self) -> bool:
        """Tell whether nothing is counted and nobody is awaited."""
        return not self.leases and not any(map(len, self._of_requests + self._of_tokens))

    def fits(self, group: LimitGroup, tokens: int, now_us: int) -> bool:
        """Tell whether a request with `tokens` fits now, by the limits of a group."""
        if now_us >= self._due_us:
            self.pass_time(now_us)
        if self._group is not group:
            self._rate_for(group, now_us)
        if self.concurrency is not None and self.running >= self.concurrency:
            return False
        for limit, of_requests, window in self.rated:
            if window.total + (1 if of_requests else tokens) > limit:
                return False
        return True

    def read(self, group: LimitGroup, tokens: int, now_us: int) -> GroupReading:
        """Return how the group stands, and how long until a request with `tokens` fits."""
        self.pass_time(now_us)
        self._rate_for(group, now_us)
        is_full = self.concurrency is not None and self.running >= self.concurrency
        readings = [
            window.read(now_us, 1 if of_requests else tokens, limit)
            for limit, of_requests, window in self.rated
        ]
        return GroupReading(self.running, is_full, readings)

    def take(self, call_id: str, tokens: int, now_us: int, lease_us: int) -> None:
        """Take a slot, a request and a reservation, of the group that was just seen to fit."""
        due_us = until_us = now_us + lease_us
        if until_us < self._earliest_us:
            self._earliest_us = until_us
        for _, of_requests, window in self.rated:
            amount = 1 if of_requests else tokens
            if amount:
                window.add(now_us, amount)
                if window.due_us < due_us:
                    due_us = window.due_us
        if due_us < self._due_us:
            self._due_us = due_us
        self.leases[call_id] = _Lease(now_us, until_us, tokens, tokens)
        self.running += 1

    def renew(self, call_id: str, used: int, now_us: int, lease_us: int) -> bool:
        """Lengthen a lease that is still held; False where it is not."""
        self.pass_time(now_us)
        lease = self.leases.get(call_id)
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
        if now_us >= self._due_us:
            self.pass_time(now_us)
        lease = self.leases.pop(call_id, None)
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

    def _end_leases(self, now_us: int) -> None:
        for call_id, lease in list(self.leases.items()):
            if lease.until_us > now_us:
                continue
            if lease.is_lost:
                del self.leases[call_id]
                continue
            self._give_back(lease, lease.reserved - lease.used)
            lease.reserved = lease.used
            lease.until_us = now_us + FORGET_US
            lease.is_lost = True
            self.running -= 1
        ends = [lease.until_us for lease in self.leases.values()]
        self._earliest_us = min(ends, default=_NEVER_US)

    def _rate_for(self, group: LimitGroup, now_us: int) -> None:
        """Make the rates of a group ready; the limits of an account hardly ever change."""
        if self._group is not group:
            self._group = group
            self.concurrency = group.concurrency
            self.rated = [
                (rate.limit, rate.metric == "requests", self._window(rate, now_us))
                for rate in group.rates
            ]

    def _window(self, rate: Rate, now_us: int) -> RollingWindow:
        windows = self._of_requests if rate.metric == "requests" else self._of_tokens
        for window in windows:
            if window.window_us == rate.window_us:
                return window
        window = RollingWindow(rate.window_us, now_us)
        windows.append(window)
        self._due_us = min(self._due_us, window.due_us)
        return window

    def _give_back(self, lease: _Lease, tokens: int) -> None:
        # No more than it took: an overrun that was told in error stays where it was recorded.
        tokens = min(tokens, lease.taken)
        lease.taken -= tokens
        if tokens:
            for window in self._of_tokens:
                window.give_back(lease.admitted_us, tokens)

    def _add(self, tokens: int, now_us: int) -> None:
        for window in self._of_tokens:
            window.add(now_us, tokens)
            self._due_us = min(self._due_us, window.due_us)


def standings_now(counted: Sequence[Counters], now_us: int, *, added: bool) -> Standings:
    """Return how groups stand that were just asked for: what `standings_of` makes of readings.

    `added`: something was added to each of their windows at this very moment.
    """
    requests: Standing | None = None
    tokens: Standing | None = None
    concurrency = Standing(0, 0, 0.0)
    for counters in counted:
        most, running = counters.concurrency, counters.running
        if most is not None:
            concurrency = Standing(most, most - running if most > running else 0, 0.0)
        for limit, of_requests, window in counters.rated:
            remaining = limit - window.total if limit > window.total else 0
            known = requests if of_requests else tokens
            if known is not None and remaining >= known.remaining:
                continue
            reset_us = window.window_us if added else window.reset_us(now_us)
            standing = Standing(limit, remaining, reset_us / MICROSECONDS)
            if of_requests:
                requests = standing
            else:
                tokens = standing
    assert requests is not None
    assert tokens is not None
    return Standings(requests, tokens, concurrency)
