"""One worker process of a simulation: the whole stack, as a server would run it."""

import asyncio
import contextlib
import contextvars
import fcntl
import os
from collections.abc import Sequence
from typing import Any

from inf_middleware import (
    BillingEvent,
    CostLedger,
    Price,
    Prices,
    Tier,
    TierLimiter,
    Tiers,
    TokenMeter,
    sharing,
)
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ports import Rejected
from inf_middleware.stores.outage import OutageStore
from inf_middleware.stores.redis import RedisStore
from tests.simulate.asked import ASSUMED_OUTPUT, count_words
from tests.simulate.limits_model import LimitsModel
from tests.simulate.machine import OWNER, Process
from tests.simulate.model_app import model_app
from tests.simulate.observed import (
    LEASE_S,
    ObservedAccounts,
    ObservedLedger,
    ObservedMemory,
    ObservedStore,
)
from tests.simulate.redispy import Storage

# Small, so that limits bind; the boundaries are what some requests cost.
TIERS = Tiers(
    [
        Tier("Free", 1, 6, 600),
        Tier("Tier1", 3, 12, 2_500, recharged_from="0.05"),
        Tier("Tier2", 6, 40, 20_000, recharged_from="0.5"),
    ]
)
PRICES = Prices([Price("inf-chat-v1", "10", "20")])

# Which file descriptors a process has locked: the kernel lets go of them when it dies.
_locked: dict[Process, list[tuple[int, int]]] = {}
_flock = fcntl.flock


def _noting_flock(file: int, operation: int) -> None:
    _flock(file, operation)
    owner = OWNER.get()
    if owner is not None and operation & fcntl.LOCK_EX:
        _locked.setdefault(owner, []).append((file, os.fstat(file).st_ino))


fcntl.flock = _noting_flock  # type: ignore[assignment]


class Sink:
    """A far end; `failing`, `rejecting` and `slow_s` are its faults."""

    def __init__(self) -> None:
        self.failing = False
        self.rejecting = 0
        self.slow_s = 0.0
        self.taken: list[tuple[str, str, bytes]] = []  # id, account, bytes
        self.rejected: set[str] = set()

    async def __call__(self, events: Sequence[BillingEvent]) -> None:
        if self.slow_s:
            await asyncio.sleep(self.slow_s)
        if self.failing:
            raise OSError("the far end is away")
        reasons = {}
        if self.rejecting:
            self.rejecting -= 1
            reasons = {events[-1].id: "not wanted"}
            self.rejected.add(events[-1].id)
        for event in events:
            if event.id not in reasons:
                self.taken.append((event.id, event.account, event.encode()))
        if reasons:
            raise Rejected(reasons)


class Worker:
    """A process with a stack; `world` has the machine, the disk, the server and the sinks."""

    def __init__(self, world: Any, name: str) -> None:
        self.name = name
        self.gone = False  # dead, or taken for dead
        self.process = Process(name)
        self.context = contextvars.copy_context()
        self.context.run(OWNER.set, self.process)
        self.context.run(self._build, world)

    def kill(self, loop: Any) -> None:
        """End it where it stands; the kernel lets go of its locks."""
        self.gone = True
        loop.kill_process(self.process)
        for file, inode in _locked.pop(self.process, []):
            with contextlib.suppress(OSError):
                if os.fstat(file).st_ino == inode:
                    _flock(file, fcntl.LOCK_UN)

    def limiting_in_use(self) -> int:
        """Return how many places of this process are taken."""
        taken: int = self.app._stack.worker._parts.limiting.waiting.places._taken
        return taken

    def spawn(self, loop: Any, coroutine: Any, **variables: Any) -> asyncio.Task[Any]:
        """Run something in this process."""
        context = self.context.copy()
        for variable, value in variables.get("given", ()):
            context.run(variable.set, value)
        task: asyncio.Task[Any] = loop.create_task(coroutine, context=context)
        return task

    async def lifespan(self, kind: str) -> None:
        """Tell the stack that its server starts or stops."""
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": f"lifespan.{kind}"}

        async def send(message: Any) -> None:
            sent.append(message)
            if kind == "startup":
                raise asyncio.CancelledError  # the server goes on to serve

        with contextlib.suppress(asyncio.CancelledError):
            await self.app(
                {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send
            )

    def _build(self, world: Any) -> None:
        options = world.options
        self.ledger = ObservedLedger(world.folder / "l.db", world.acknowledged)
        self.book = LedgerBook(self.ledger, tiers=TIERS)
        memory = ObservedMemory(world.machine, LimitsModel())
        self.memory = memory
        store: Any = memory
        if options.shared:
            storage = Storage(world.server, world.machine, world.scripts)
            redis = RedisStore(storage, lease_s=LEASE_S, timeout_s=0.25)
            store = OutageStore(redis, memory, policy=options.on_storage_error)
        self.store = ObservedStore(store)
        given: dict[type, dict[str, Any]] = {
            TokenMeter: {"counter": count_words, "assumed_output_tokens": ASSUMED_OUTPUT},
            TierLimiter: {
                "tiers": TIERS,
                "storage": self.store,
                "lease_s": LEASE_S,
                "max_wait_s": options.max_wait_s,
                "max_in_flight": options.max_in_flight,
            },
            CostLedger: {
                "prices": PRICES,
                "ledger": self.ledger,
                "mode": options.mode,
                "sinks": world.sinks,
                "on_disconnect": options.on_disconnect,
                "unpriced": "record",
                "on_ledger_error": options.on_ledger_error,
            },
        }
        accounts = ObservedAccounts(self.ledger, "CNY")
        # What the stacks of one process share is of this process.
        sharing._entries.clear()
        self.app: Any = model_app
        for place, kind in enumerate(options.order):
            more = {"accounts": accounts} if not place else {}
            self.app = kind(self.app, **given[kind], **more)
        assert self.app._stack.worker is not None
