"""A rolling window in slots: the arithmetic of rates, pure and on integer microseconds.

What is added at a moment counts until the window's length after the latest addition to the same
slot. So nothing ever leaves early (never over a limit in any window), nothing stays longer than
the window's length after the slot's latest addition (no wait above it), and memory does not grow
with the rate. `state.lua` does the same.
"""

from bisect import bisect_left
from collections import deque

from inf_middleware.domain.limits import Reading

# A minute in slots of half a second: an addition leaves at most 0.5 s later than it might, which
# is below 1 % of the window, and an account takes at most 121 slots a rate.
SLOTS = 120


class _Slot:
    __slots__ = ("amount", "index", "latest")

    def __init__(self, index: int, amount: int, latest: int) -> None:
        self.index = index
        self.amount = amount
        self.latest = latest


class RollingWindow:
    """Sums what was added in the last `window_us` microseconds. Moments never go back.

    `created_us` is when counting began: what was taken before is not in it.
    """

    __slots__ = ("_slot_us", "_slots", "created_us", "total", "window_us")

    def __init__(self, window_us: int, created_us: int) -> None:
        self.window_us = window_us
        self.created_us = created_us
        self.total = 0
        self._slot_us = max(window_us // SLOTS, 1)
        self._slots: deque[_Slot] = deque()

    def __len__(self) -> int:
        return len(self._slots)

    def leave(self, now_us: int) -> None:
        """Let go of the slots whose time is over; to be called before all else at a moment."""
        slots = self._slots
        gone = now_us - self.window_us
        while slots and slots[0].latest <= gone:
            self.total -= slots.popleft().amount

    def add(self, now_us: int, amount: int) -> None:
        """Add to the slot of a moment."""
        slots = self._slots
        index = now_us // self._slot_us
        if slots and slots[-1].index == index:
            slot = slots[-1]
            slot.amount += amount
            slot.latest = now_us
        else:
            slots.append(_Slot(index, amount, now_us))
        self.total += amount

    def give_back(self, added_us: int, amount: int) -> None:
        """Take back what was added at a moment, unless its slot has left: then it mints nothing."""
        if added_us < self.created_us:
            return
        index = added_us // self._slot_us
        place = bisect_left(self._slots, index, key=lambda slot: slot.index)
        if place < len(self._slots) and self._slots[place].index == index:
            slot = self._slots[place]
            amount = min(amount, slot.amount)
            slot.amount -= amount
            self.total -= amount

    def read(self, now_us: int, asked: int, limit: int) -> Reading:
        """Return how the window stands, and how long until `asked` more fits."""
        return Reading(self.total, self.reset_us(now_us), self.wait_us(now_us, asked, limit))

    def wait_us(self, now_us: int, asked: int, limit: int) -> int:
        """Return how long until `asked` more fits; the whole window where it never can."""
        over = self.total + asked - limit
        if over <= 0:
            return 0
        for slot in self._slots:
            over -= slot.amount
            if over <= 0:
                return slot.latest + self.window_us - now_us
        return self.window_us

    def reset_us(self, now_us: int) -> int:
        """Return how long until the window is wholly empty."""
        for slot in reversed(self._slots):
            if slot.amount:
                return slot.latest + self.window_us - now_us
        return 0
