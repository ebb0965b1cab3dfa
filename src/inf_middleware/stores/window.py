"""A rolling window in slots: the arithmetic of rates, pure and on integer microseconds.

What is added at a moment counts until the window's length after the latest addition to the same
slot. So nothing ever leaves early (never over a limit in any window), nothing stays longer than
the window's length after the slot's latest addition (no wait above it), and memory does not grow
with the rate. `state.lua` does the same.
"""

from array import array
from bisect import bisect_left, bisect_right
from functools import lru_cache

from inf_middleware.domain.limits import Reading

# A minute in slots of half a second: an addition leaves at most 0.5 s later than it might, which
# is below 1 % of the window, and an account takes at most 121 slots a rate.
SLOTS = 120

# What an `array("I")` and an `array("q")` hold; 71 minutes in microseconds, and for ever.
_SHORT_MAX = 2**32 - 1
_LONG_MAX = 2**63 - 1


@lru_cache(maxsize=64)
def _lengths(window_us: int) -> tuple[int, int]:
    """Return the length of a window and of its slots: all accounts share these numbers."""
    return window_us, max(window_us // SLOTS, 1)


class RollingWindow:
    """Sums what was added in the last `window_us` microseconds. Moments never go back.

    `created_us` is when counting began: what was taken before is not in it. Before `due_us`
    nothing leaves.
    """

    __slots__ = (
        "_amount",
        "_amounts",
        "_base_us",
        "_latest",
        "_latest_us",
        "_slot_ends_us",
        "_slot_us",
        "_span_us",
        "created_us",
        "due_us",
        "total",
        "window_us",
    )

    def __init__(self, window_us: int, created_us: int) -> None:
        self.window_us, self._slot_us = _lengths(window_us)
        self.created_us = created_us
        self.total = 0
        # Of the slot that is added to, the moment of its latest addition, and its sum.
        self._slot_ends_us = created_us
        self._latest_us = created_us
        self._amount = 0
        # Of each slot before it, alike; the moment also tells which slot it is. As plain numbers,
        # for an object per slot would take eight times the memory, and those numbers as small as
        # they can be. Moments are told from the beginning of some slot.
        is_short = window_us < _SHORT_MAX // 2
        self._span_us = _SHORT_MAX if is_short else _LONG_MAX
        self._base_us = created_us - created_us % self._slot_us
        self._latest = array("I" if is_short else "q")
        self._amounts = array("I")
        self.due_us = self._base_us + self._span_us

    def __len__(self) -> int:
        return len(self._latest) + (self._amount > 0)

    def leave(self, now_us: int) -> None:
        """Let go of the slots whose time is over; from `due_us` on before all else at a moment."""
        latest = self._latest
        gone_us = now_us - self.window_us
        if latest and latest[0] <= gone_us - self._base_us:
            count = bisect_right(latest, gone_us - self._base_us)
            self.total -= sum(self._amounts[:count])
            del latest[:count], self._amounts[:count]
        if self._amount and self._latest_us <= gone_us:
            self.total -= self._amount
            self._amount = 0
        if now_us - self._base_us > self._span_us:
            self._begin_anew(now_us)
        self.due_us = self._base_us + self._span_us
        if self._latest:
            self.due_us = min(self.due_us, self._base_us + self._latest[0] + self.window_us)
        elif self._amount:
            self.due_us = min(self.due_us, self._latest_us + self.window_us)

    def add(self, now_us: int, amount: int) -> None:
        """Add to the slot of a moment."""
        if now_us >= self._slot_ends_us:
            self._next_slot(now_us)
        self._latest_us = now_us
        self._amount += amount
        self.total += amount

    def _next_slot(self, now_us: int) -> None:
        """Put the slot that was added to behind the others, and begin the one of a moment."""
        if self._amount:
            self._latest.append(self._latest_us - self._base_us)
            try:
                self._amounts.append(self._amount)
            except OverflowError:
                self._amounts = array("q", [*self._amounts, self._amount])
            self._amount = 0
        self._slot_ends_us = now_us - now_us % self._slot_us + self._slot_us
        self.due_us = min(self.due_us, now_us + self.window_us)

    def give_back(self, added_us: int, amount: int) -> None:
        """Take back what was added at a moment, unless its slot has left: then it mints nothing."""
        if added_us < self.created_us:
            return
        if added_us >= self._slot_ends_us - self._slot_us:
            if added_us < self._slot_ends_us:
                if amount > self._amount:
                    amount = self._amount
                self._amount -= amount
                self.total -= amount
            return
        latest = self._latest
        index = (added_us - self._base_us) // self._slot_us
        place = bisect_left(latest, index * self._slot_us)
        if place < len(latest) and latest[place] // self._slot_us == index:
            amount = min(amount, self._amounts[place])
            self._amounts[place] -= amount
            self.total -= amount

    def read(self, now_us: int, asked: int, limit: int) -> Reading:
        """Return how the window stands, and how long until `asked` more fits."""
        return Reading(self.total, self.reset_us(now_us), self.wait_us(now_us, asked, limit))

    def wait_us(self, now_us: int, asked: int, limit: int) -> int:
        """Return how long until `asked` more fits; the whole window where it never can."""
        over = self.total + asked - limit
        if over <= 0:
            return 0
        for latest, amount in zip(self._latest, self._amounts, strict=True):
            over -= amount
            if over <= 0:
                return self._base_us + latest + self.window_us - now_us
        if over <= self._amount:
            return self._latest_us + self.window_us - now_us
        return self.window_us

    def reset_us(self, now_us: int) -> int:
        """Return how long until the window is wholly empty."""
        if not self.total:
            return 0
        if self._amount:
            return self._latest_us + self.window_us - now_us
        place = len(self._amounts) - 1
        while not self._amounts[place]:  # given back
            place -= 1
        return self._base_us + self._latest[place] + self.window_us - now_us

    def _begin_anew(self, now_us: int) -> None:
        """Tell moments from a later one: that of the oldest slot, or of now."""
        if self._latest:
            first = self._latest[0]
        else:
            first = (self._latest_us if self._amount else now_us) - self._base_us
        later_us = first - first % self._slot_us
        self._base_us += later_us
        self._latest = array("I", [moment - later_us for moment in self._latest])
