"""The counters of one account, in groups of limits: their leases and their windows.

A lease is the slot and the reservation of one request. It ends by settlement; by itself when it is
not renewed in time, with what it is known to have used: then its slot is free, it is remembered as
lost for a while, and its settlement only adds what was used beyond. `state.lua` does the same.
"""

from collections.abc import Sequence

import msgspec

from inf_middleware.domain.limits import (
    UNLIMITED,
    Admission,
    Ask,
    GroupReading,
    Refusal,
    Standing,
    Standings,
    answer_of,
    standings_of,
)
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
    windows: tuple[RollingWindow, ...]  # which it took tokens from: no other is corrected
    has_slot: bool
    used: int = 0
    is_lost: bool = False


class Counters:
    """Counts for one group; moments never go back."""

    __slots__ = (
        "_of_requests",
        "_of_tokens",
        "due_us",
        "earliest_us",
        "from_windows",
        "leases",
        "running",
        "scope",
    )

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.running = 0
        self.leases: dict[str, _Lease] = {}  # lost ones, too
        self._of_requests: tuple[RollingWindow, ...] = ()
        self._of_tokens: tuple[RollingWindow, ...] = ()
        # Of those which a call takes from that is admitted now: mostly all, and the same tuple.
        self.from_windows: tuple[RollingWindow, ...] = ()
        self.earliest_us = _NEVER_US  # no lease ends before
        self.due_us = _NEVER_US  # nor does anything leave a window

    def pass_time(self, now_us: int) -> None:
        """End the leases whose time is over, and let go of what has left the windows."""
        if now_us < self.due_us:
            return
        due_us = _NEVER_US
        for window in (*self._of_requests, *self._of_tokens):
            window.leave(now_us)
            due_us = min(due_us, window.due_us)
        if now_us >= self.earliest_us:
            self._end_leases(now_us)
        self.due_us = min(due_us, self.earliest_us)

    def is_idle(self) -> bool:
        """Tell whether nothing is counted and nobody is awaited."""
        return not self.leases and not any(map(len, self._of_requests + self._of_tokens))

    def window(self, rate: Rate, now_us: int) -> RollingWindow:
        """Return what counts for a rate: of one metric and time, whatever the limit."""
        windows = self._of_requests if rate.metric == "requests" else self._of_tokens
        for window in windows:
            if window.window_us == rate.window_us:
                return window
        window = RollingWindow(rate.window_us, now_us)
        if rate.metric == "requests":
            self._of_requests = (*windows, window)
        else:
            self._of_tokens = (*windows, window)
        self.due_us = min(self.due_us, window.due_us)
        return window

    def take_from(self, group: LimitGroup, now_us: int) -> list[tuple[Rate, RollingWindow]]:
        """Have calls that are admitted take from the windows of a group's rates; return these."""
        rated = [(rate, self.window(rate, now_us)) for rate in group.rates]
        taking = [window for rate, window in rated if rate.metric == "tokens"]
        has_all = len(taking) == len(self._of_tokens)
        self.from_windows = self._of_tokens if has_all else tuple(taking)
        return rated

    def read(self, group: LimitGroup, tokens: int, now_us: int) -> GroupReading:
        """Return how the group stands, and how long until a request with `tokens` fits."""
        self.pass_time(now_us)
        is_full = group.concurrency is not None and self.running >= group.concurrency
        readings = [
            self.window(rate, now_us).read(
                now_us, 1 if rate.metric == "requests" else tokens, rate.limit
            )
            for rate in group.rates
        ]
        return GroupReading(self.running, is_full, readings)

    def renew(self, call_id: str, used: int, now_us: int, lease_us: int) -> bool:
        """Lengthen a lease that is still held; False where it is not."""
        self.pass_time(now_us)
        lease = self.leases.get(call_id)
        if lease is None or lease.is_lost:
            return False
        lease.until_us = now_us + lease_us
        lease.used = max(lease.used, used)
        if used > lease.reserved:
            self._add(lease, used - lease.reserved, now_us)
            lease.reserved = used
        return True

    def settle(self, call_id: str, tokens: int | None, now_us: int) -> None:
        """End a lease with the tokens really used (None: what was reserved); once."""
        if now_us >= self.due_us:
            self.pass_time(now_us)
        lease = self.leases.pop(call_id, None)
        if lease is None:
            return
        if lease.has_slot and not lease.is_lost:
            self.running -= 1
        if tokens is None:
            return
        if tokens < lease.reserved:
            self._give_back(lease, lease.reserved - tokens)
        elif tokens > lease.reserved:
            self._add(lease, tokens - lease.reserved, now_us)

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
            if lease.has_slot:
                self.running -= 1
        ends = [lease.until_us for lease in self.leases.values()]
        self.earliest_us = min(ends, default=_NEVER_US)

    def _give_back(self, lease: _Lease, tokens: int) -> None:
        # No more than it took: an overrun that was told in error stays where it was recorded.
        if tokens > lease.taken:
            tokens = lease.taken
        if tokens:
            lease.taken -= tokens
            for window in lease.windows:
                window.give_back(lease.admitted_us, tokens)

    def _add(self, lease: _Lease, tokens: int, now_us: int) -> None:
        for window in lease.windows:
            window.add(now_us, tokens)
            self.due_us = min(self.due_us, window.due_us)


class _Asked:
    """What `groups` ask about, found once: the limits of an account hardly ever change.

    Nothing of what is taken ends sooner than after `stays_us`.
    """

    __slots__ = ("counted", "groups", "requests", "stays_us", "tokens")

    def __init__(
        self,
        groups: Sequence[LimitGroup],
        counted: list[Counters],
        now_us: int,
        lease_us: int,
    ) -> None:
        self.groups = groups
        self.counted = tuple(counted)  # of each group, in their order
        rated = [
            one
            for group, counters in zip(groups, counted, strict=True)
            for one in counters.take_from(group, now_us)
        ]
        self.requests = tuple([one for one in rated if one[0].metric == "requests"])
        self.tokens = tuple([one for one in rated if one[0].metric == "tokens"])
        self.stays_us = min([lease_us, *[rate.window_us for rate, _ in rated]])


class AccountCounters:
    """Counts for one account, in its groups of limits; moments never go back."""

    __slots__ = ("_asked", "groups", "touched_us")

    def __init__(self) -> None:
        self.groups: tuple[Counters, ...] = ()  # mostly one: a dict would take twice its memory
        self.touched_us = 0
        self._asked: _Asked | None = None  # of what was asked for last

    def of(self, scope: str) -> Counters | None:
        """Return what counts in a scope; None where nothing does yet."""
        for counters in self.groups:
            if counters.scope == scope:
                return counters
        return None

    def settle(self, ask: Ask, tokens: int | None, now_us: int) -> None:
        """End what a call took, with the tokens really used (None: what was reserved); once."""
        asked = self._asked
        if asked is not None and asked.groups is ask.groups:
            for counters in asked.counted:
                counters.settle(ask.call_id, tokens, now_us)
            return
        for group in ask.groups:
            found = self.of(group.scope)
            if found is not None:
                found.settle(ask.call_id, tokens, now_us)

    def admit(self, ask: Ask, now_us: int, lease_us: int) -> Admission | Refusal:
        """Take a slot, a request and a reservation of tokens: all, or nothing at all."""
        asked = self._asked
        if asked is None or asked.groups is not ask.groups:
            asked = self._asked = self._found(ask.groups, now_us, lease_us)
        call_id, tokens = ask.call_id, ask.tokens
        fits = takes = True
        for group, counters in zip(asked.groups, asked.counted, strict=True):
            if now_us >= counters.due_us:
                counters.pass_time(now_us)
            if group.concurrency is not None and counters.running >= group.concurrency:
                fits = False
            # Asked again for what it has (a retry after a lost answer), a call takes nothing.
            if call_id in counters.leases:
                takes = False
        for rate, window in asked.requests:
            if window.total >= rate.limit:
                fits = False
        for rate, window in asked.tokens:
            if window.total + tokens > rate.limit:
                fits = False
        would_refuse = None
        if not takes:
            return Admission(ask, standings_of(ask.groups, self._readings(asked, 0, now_us)))
        if not fits:
            answer = answer_of(ask, self._readings(asked, tokens, now_us))
            if isinstance(answer, Refusal):
                return answer
            would_refuse = answer.would_refuse
        until_us = now_us + lease_us
        due_us = now_us + asked.stays_us
        concurrency = UNLIMITED
        for group, counters in zip(asked.groups, asked.counted, strict=True):
            takes_slot = group.takes_slot
            counters.leases[call_id] = _Lease(
                now_us, until_us, tokens, tokens, counters.from_windows, takes_slot
            )
            if takes_slot:
                counters.running += 1
            if until_us < counters.earliest_us:
                counters.earliest_us = until_us
            if due_us < counters.due_us:
                counters.due_us = due_us
            most = group.concurrency
            if most is not None:
                concurrency = Standing(most, max(most - counters.running, 0), 0.0)
        standings = Standings(
            _added(asked.requests, 1, now_us), _added(asked.tokens, tokens, now_us), concurrency
        )
        return Admission(ask, standings, would_refuse)

    def _found(self, groups: Sequence[LimitGroup], now_us: int, lease_us: int) -> _Asked:
        counted = []
        for group in groups:
            counters = self.of(group.scope)
            if counters is None:
                counters = Counters(group.scope)
                self.groups = (*self.groups, counters)
            counters.pass_time(now_us)
            counted.append(counters)
        return _Asked(groups, counted, now_us, lease_us)

    def _readings(self, asked: _Asked, tokens: int, now_us: int) -> list[GroupReading]:
        counted = zip(asked.groups, asked.counted, strict=True)
        return [counters.read(group, tokens, now_us) for group, counters in counted]


def _added(rated: Sequence[tuple[Rate, RollingWindow]], amount: int, now_us: int) -> Standing:
    """Add to windows, and return how the tightest limit stands then."""
    tightest = None
    for rate, window in rated:
        if amount:
            window.add(now_us, amount)
        limit = rate.limit
        remaining = limit - window.total if limit > window.total else 0
        if tightest is None or remaining < tightest.remaining:
            reset_s = rate.window_s if amount else window.reset_us(now_us) / MICROSECONDS
            tightest = Standing(limit, remaining, reset_s)
    assert tightest is not None
    return tightest
