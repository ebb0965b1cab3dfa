"""The limits of one process, in its memory. Each worker process counts for itself."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from inf_middleware.domain.limits import Admission, Ask, GroupReading, Held, Refusal
from inf_middleware.domain.rates import MICROSECONDS, LimitGroup
from inf_middleware.stores.counters import AccountCounters, Counters

# Old accounts looked at per admission: two, so that idle ones leave faster than new ones come.
_SWEPT_PER_ADMISSION = 2

_PER_S = float(MICROSECONDS)

# Who was touched a shorter time ago has something in the window of a minute: not looked at.
_SWEPT_AFTER_US = 60 * MICROSECONDS


class MemoryStore:
    """Decides admission over all limits of an account in one step, in O(1).

    Counters do not depend on limits: an account's level may change at any time. Accounts that have
    been idle for their longest window are dropped on the way. `clock` gives seconds.
    """

    def __init__(
        self, *, lease_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._lease_us = round(lease_s * MICROSECONDS)
        self._latest_us = 0
        self._sweep_from_us = 0  # no account has been untouched for long before
        self._accounts: OrderedDict[str, AccountCounters] = OrderedDict()  # longest untouched first
        # Several event loops of one process may share a store; nothing waits under this lock.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """How many accounts are remembered."""
        return len(self._accounts)

    def in_progress(self, account_id: str) -> int:
        """How many requests of an account are in progress."""
        with self._lock:
            now_us = self._now_us()
            running = set()
            for counters in self._account(account_id).groups:
                counters.pass_time(now_us)
                running |= {call for call, lease in counters.leases.items() if not lease.is_lost}
        return len(running)

    async def admit(self, ask: Ask) -> Admission | Refusal:
        """Take a slot, a request and a reservation of tokens: all, or nothing at all.

        More tokens than a rate ever allows are refused with the whole window as the wait.
        """
        return self.admit_now(ask)

    def admit_now(self, ask: Ask) -> Admission | Refusal:
        """Do the same without a task: nothing here waits."""
        self._lock.acquire()  # a `with` takes twice as long, which is a tenth of all this
        try:
            now_us = self._now_us()
            if now_us >= self._sweep_from_us:
                self._sweep(now_us)
            account = self._accounts.get(ask.account_id)
            if account is None:
                account = self._accounts[ask.account_id] = AccountCounters()
            else:
                self._accounts.move_to_end(ask.account_id)
            account.touched_us = now_us
            return account.admit(ask, now_us, self._lease_us)
        finally:
            self._lock.release()

    async def read(self, account_id: str, groups: Sequence[LimitGroup]) -> list[GroupReading]:
        """Return how groups of an account's limits stand now; takes nothing."""
        with self._lock:
            now_us = self._now_us()
            known = self._account(account_id)
            readings = []
            for group in groups:
                counters = known.of(group.scope) or Counters(group.scope)
                readings.append(counters.read(group, 0, now_us))
        return readings

    async def renew(self, held: Sequence[Held]) -> frozenset[str]:
        """Lengthen the leases of running calls; return the ids of those that were lost."""
        lost = set()
        with self._lock:
            now_us = self._now_us()
            for admission, used in held:
                account = self._account(admission.account_id)
                for group in admission.ask.groups:
                    counters = account.of(group.scope)
                    if counters is None or not counters.renew(
                        admission.call_id, used, now_us, self._lease_us
                    ):
                        lost.add(admission.call_id)
        return frozenset(lost)

    async def settle(self, admission: Admission, tokens: int | None) -> None:
        """Put the tokens really used in the place of the reservation, and free the slot; once."""
        self.settle_now(admission, tokens)

    def settle_now(self, admission: Admission, tokens: int | None) -> None:
        """Do the same without a task: nothing here waits."""
        ask = admission.ask
        self._lock.acquire()
        try:
            account = self._accounts.get(ask.account_id)
            if account is not None:
                account.settle(ask, tokens, self._now_us())
        finally:
            self._lock.release()

    async def aclose(self) -> None:
        """Do nothing: there is nothing open."""

    def _account(self, account_id: str) -> AccountCounters:
        return self._accounts.get(account_id) or AccountCounters()

    def _now_us(self) -> int:
        now_us = round(self._clock() * _PER_S)
        if now_us < self._latest_us:
            return self._latest_us
        self._latest_us = now_us
        return now_us

    def _sweep(self, now_us: int) -> None:
        accounts = self._accounts
        for _ in range(min(_SWEPT_PER_ADMISSION, len(accounts))):
            account_id = next(iter(accounts))
            account = accounts[account_id]
            if now_us - account.touched_us < _SWEPT_AFTER_US:
                self._sweep_from_us = account.touched_us + _SWEPT_AFTER_US
                return
            for counters in account.groups:
                counters.pass_time(now_us)
            if all(counters.is_idle() for counters in account.groups):
                del accounts[account_id]
            else:
                account.touched_us = now_us
                accounts.move_to_end(account_id)
