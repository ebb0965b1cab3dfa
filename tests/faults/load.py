"""Callers that ask a store without end, and count for themselves what it lets in."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from inf_middleware import Tier
from inf_middleware.domain.limits import Admission, Ask

# Machines under the load of other tests differ.
PATIENCE_S = 90.0

# More callers for an account than it has slots: some are always refused.
CALLERS = 3
SLOTS = 2

TIER = Tier("Load", SLOTS, 10**6, 10**9)


class Load:
    """What callers of some accounts have seen so far."""

    def __init__(self, store: Any, accounts: Sequence[str]) -> None:
        self.store = store
        self.accounts = accounts
        self.admitted: Counter[str] = Counter()
        self.refused = 0
        self.running: Counter[str] = Counter()
        self.most = 0  # that ran at a time, of one account

    async def call(self, account: str, name: str) -> None:
        """One call, which works for a moment."""
        answer = await self.store.admit(Ask(name, account, TIER.groups_for(None), 10))
        if not isinstance(answer, Admission):
            self.refused += 1
            await asyncio.sleep(0.005)
            return
        self.admitted[account] += 1
        self.running[account] += 1
        self.most = max(self.most, self.running[account])
        await asyncio.sleep(0.005)
        self.running[account] -= 1
        await self.store.settle(answer, 10)

    async def more(self, count: int) -> None:
        """Return when each account had so many calls more."""
        wanted = {account: self.admitted[account] + count for account in self.accounts}
        await until(
            lambda: all(self.admitted[account] >= wanted[account] for account in wanted),
            f"{count} calls more of each account",
        )

    async def _ask_on(self, account: str, caller: int, ending: asyncio.Event) -> None:
        number = 0
        while not ending.is_set():
            number += 1
            try:
                await self.call(account, f"{account} {caller} {number}")
            except BaseException:
                ending.set()  # clients may swallow the cancellation of the others
                raise


@asynccontextmanager
async def under_load(store: Any, accounts: Sequence[str]) -> AsyncIterator[Load]:
    """Have all accounts ask; at the end each call is let end. What fails fails the test."""
    load = Load(store, accounts)
    ending = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for account in accounts:
            for caller in range(CALLERS):
                group.create_task(load._ask_on(account, caller, ending))
        try:
            await load.more(5)
            yield load
        finally:
            ending.set()


async def until(is_true: Callable[[], Any], what: str) -> None:
    """Wait for something that tasks of this event loop, or a server, bring about."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_true():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S:g} s: {what}"
        await asyncio.sleep(0.01)
