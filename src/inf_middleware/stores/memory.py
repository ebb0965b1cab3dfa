"""The limits of one process, in its memory.

Each worker process counts for itself. There are no leases: the worker of a call always closes it,
and a process that dies takes its counters with it.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from inf_middleware.domain.limits import (
    CONCURRENCY_RETRY_S,
    Admission,
    LimitCode,
    Refusal,
    Standing,
    Standings,
)
from inf_middleware.domain.tiers import Metric, Rate, Tier
from inf_middleware.stores.window import MICROSECONDS, RollingWindow

# Old accounts looked at per admission: two, so that idle ones leave faster than new ones come.
_SWEPT_PER_ADMISSION = 2

_CODES: dict[Metric, LimitCode] = {
    "requests": "requests_limit_exceeded",
    "tokens": "tokens_limit_exceeded",
}

# Of a running request: its reservation, and where in each window of tokens it was taken from.
_Taken = tuple[int, tuple[tuple[RollingWindow, int], ...]]


class _Account:
    __slots__ = ("running", "windows")

    def __init__(self) -> None:
        self.running: dict[str, _Taken] = {}
        self.windows: dict[tuple[Metric, float], RollingWindow] = {}

    def window(self, rate: Rate) -> RollingWindow:
        key = (rate.metric, rate.window_s)
        window = self.windows.get(key)
        if window is None:
            window = self.windows[key] = RollingWindow(round(rate.window_s * MICROSECONDS))
        return window

    def is_idle(self, now_us: int) -> bool:
        if self.running:
            return False
        for window in self.windows.values():
            window.leave(now_us)
            if len(window):
                return False
        return True


class MemoryStore:
    """Decides admission over all limits of an account in one step, in O(1).

    Counters do not depend on limits: an account's level may change at any time. Accounts that have
    been idle for their longest window are dropped on the way. `clock` gives seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._latest_us = 0
        self._accounts: OrderedDict[str, _Account] = OrderedDict()  # longest untouched first
        # Several event loops of one process may share a store; nothing waits under this lock.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many accounts are remembered."""
        return len(self._accounts)

    def in_progress(self, account_id: str) -> int:
        """How many requests of an account are in progress."""
        account = self._accounts.get(account_id)
        return len(account.running) if account else 0

    async def admit(
        self, call_id: str, account_id: str, tier: Tier, tokens: int
    ) -> Admission | Refusal:
        """Take a slot, a request and a reservation of tokens: all, or nothing at all.

        More tokens than a rate ever allows are refused with the whole window as the wait.
        """
        with self._lock:
            now_us = self._now_us()
            self._sweep(now_us)
            account = self._accounts.get(account_id)
            if account is None:
                account = self._accounts[account_id] = _Account()
            else:
                self._accounts.move_to_end(account_id)
            refusal = _refusal(account, tier, tokens, now_us)
            if refusal is not None:
                return refusal
            taken = []
            for rate in tier.rates:
                window = account.window(rate)
                if rate.metric == "requests":
                    window.add(now_us, 1)
                elif tokens:
                    taken.append((window, window.add(now_us, tokens)))
                else:
                    taken.append((window, -1))  # nothing to give back, but overruns belong here
            account.running[call_id] = (tokens, tuple(taken))
            standings = _standings(account, tier, now_us)
        return Admission(call_id, account_id, tokens, standings)

    async def settle(self, admission: Admission, tokens: int | None) -> None:
        """Put the tokens really used in the place of the reservation, and free the slot; once."""
        with self._lock:
            account = self._accounts.get(admission.account_id)
            entry = account.running.pop(admission.call_id, None) if account else None
            if entry is None or tokens is None:
                return
            reserved, taken = entry
            now_us = self._now_us()
            for window, index in taken:
                window.leave(now_us)
                if tokens < reserved:
                    window.give_back(index, reserved - tokens)
                elif tokens > reserved:
                    window.add(now_us, tokens - reserved)

    async def aclose(self) -> None:
        """Do nothing: there is nothing open."""

    def _now_us(self) -> int:
        self._latest_us = max(self._latest_us, round(self._clock() * MICROSECONDS))
        return self._latest_us

    def _sweep(self, now_us: int) -> None:
        accounts = self._accounts
        for _ in range(min(_SWEPT_PER_ADMISSION, len(accounts))):
            account_id = next(iter(accounts))
            if accounts[account_id].is_idle(now_us):
                del accounts[account_id]
            else:
                accounts.move_to_end(account_id)


def _refusal(account: _Account, tier: Tier, tokens: int, now_us: int) -> Refusal | None:
    binding: Rate | None = None
    wait_us = 0
    for rate in tier.rates:
        window = account.window(rate)
        window.leave(now_us)
        asked = 1 if rate.metric == "requests" else tokens
        if window.total + asked > rate.limit:
            wait = window.wait_us(now_us, asked, rate.limit)
            if binding is None or wait > wait_us:
                binding, wait_us = rate, wait
    running = len(account.running)
    is_full = running >= tier.concurrency
    if binding is None and not is_full:
        return None
    wait_s = wait_us / MICROSECONDS
    standings = _standings(account, tier, now_us)
    if binding is None:
        return Refusal(
            "concurrency_limit_exceeded",
            limit=tier.concurrency,
            used=running,
            requested=1,
            window_s=0.0,
            retry_after_s=CONCURRENCY_RETRY_S,
            standings=standings,
        )
    return Refusal(
        _CODES[binding.metric],
        limit=binding.limit,
        used=account.window(binding).total,
        requested=1 if binding.metric == "requests" else tokens,
        window_s=binding.window_s,
        retry_after_s=max(wait_s, CONCURRENCY_RETRY_S) if is_full else wait_s,
        standings=standings,
    )


def _standings(account: _Account, tier: Tier, now_us: int) -> Standings:
    least: dict[Metric, Standing] = {}
    for rate in tier.rates:
        window = account.window(rate)
        remaining = max(rate.limit - window.total, 0)
        known = least.get(rate.metric)
        if known is None or remaining < known.remaining:
            reset_s = window.reset_us(now_us) / MICROSECONDS
            least[rate.metric] = Standing(rate.limit, remaining, reset_s)
    free = max(tier.concurrency - len(account.running), 0)
    concurrency = Standing(tier.concurrency, free, 0.0)
    return Standings(least["requests"], least["tokens"], concurrency)
