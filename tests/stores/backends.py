"""The stores under the contract, each on a clock that the test moves."""

import asyncio
import itertools
from typing import Any, Protocol

import redis

from inf_middleware import Tier
from inf_middleware.domain.limits import Admission, Ask, Held, Refusal
from inf_middleware.stores.memory import MemoryStore
from inf_middleware.stores.redis import RedisStore
from tests.kit import Clock

SMALL = Tier("Small", 3, 5, 1_000)
LARGE = Tier("Large", 4, 8, 3_000)

LEASE_S = 30.0

# In the place of clock.lua: a clock that stands still until the test moves it.
MOVED_CLOCK = """
local function clock() return tonumber(redis.call('GET', 'the-tests-clock')) end
"""


class Backend(Protocol):
    """A kind of store, new and empty."""

    store: Any

    def move_to(self, now: float) -> None: ...

    async def in_progress(self, account: str) -> int: ...


class InMemory:
    def __init__(self) -> None:
        self._clock = Clock(0.0)
        self.store = MemoryStore(lease_s=LEASE_S, clock=self._clock)

    def move_to(self, now: float) -> None:
        self._clock.now = now

    async def in_progress(self, account: str) -> int:
        return self.store.in_progress(account)


class OnRedis:
    """On a real server; every store is a deployment of its own."""

    _numbers = itertools.count()

    def __init__(self, uri: str, client: redis.Redis) -> None:
        self.client = client
        self.deployment = f"contract-{next(self._numbers)}"
        self.move_to(0.0)
        self._uri = uri
        self.store = self.another()

    def another(self) -> RedisStore:
        """Another process of the same deployment."""
        return RedisStore(
            self._uri,
            deployment=self.deployment,
            lease_s=LEASE_S,
            timeout_s=10.0,
            clock=MOVED_CLOCK,
        )

    def move_to(self, now: float) -> None:
        self.client.set("the-tests-clock", round(now * 1_000_000))

    async def in_progress(self, account: str) -> int:
        return max([group.running for group in await self.store.show(account)], default=0)


class Driver:
    """Calls a store step by step, on the test's clock."""

    def __init__(self, backend: Backend, runner: asyncio.Runner) -> None:
        self.store = backend.store
        self._backend = backend
        self._runner = runner
        self._now = 0.0
        self._calls = itertools.count()

    @property
    def now(self) -> float:
        return self._now

    @now.setter
    def now(self, now: float) -> None:
        self._now = now
        self._backend.move_to(now)

    def run(self, step: Any) -> Any:
        return self._runner.run(step)

    def ask(
        self,
        tier: Tier = SMALL,
        tokens: int = 10,
        account: str = "a",
        *,
        model: str | None = None,
        enforce: bool = True,
    ) -> Ask:
        groups = tier.groups_for(model)
        return Ask(f"call-{next(self._calls)}", account, groups, tokens, enforce)

    def admit(self, *args: Any, **more: Any) -> Any:
        return self.run(self.store.admit(self.ask(*args, **more)))

    def admitted(self, *args: Any, **more: Any) -> Admission:
        answer = self.admit(*args, **more)
        assert isinstance(answer, Admission), answer
        return answer

    def refused(self, *args: Any, **more: Any) -> Refusal:
        answer = self.admit(*args, **more)
        assert isinstance(answer, Refusal), answer
        return answer

    def settle(self, admission: Admission, tokens: int | None) -> None:
        async def settling() -> None:
            await self.store.settle(admission, tokens)

        self.run(settling())

    def renew(self, *held: tuple[Admission, int]) -> frozenset[str]:
        lost: frozenset[str] = self.run(self.store.renew([Held(*one) for one in held]))
        return lost

    def in_progress(self, account: str = "a") -> int:
        running: int = self.run(self._backend.in_progress(account))
        return running
