"""Stores and ledgers whose time is taken: only where somebody watches."""

from collections.abc import Awaitable, Generator, Sequence
from time import perf_counter
from typing import Any

from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.limits import Admission, Ask, Held, Refusal
from inf_middleware.domain.observations import Timing
from inf_middleware.ports import Holds, Ledger, LimitStore, Observer


class _Timer:
    """Tells how long what it encloses took."""

    __slots__ = ("_began", "_observer", "_operation", "_part")

    def __init__(self, observer: Observer, part: str, operation: str) -> None:
        self._observer = observer
        self._part = part
        self._operation = operation
        self._began = perf_counter()

    def __enter__(self) -> None:
        """Begin where it was made."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, Exception):  # whoever is cancelled waited for no answer
            took_s = perf_counter() - self._began
            self._observer.timed(Timing(self._part, self._operation, took_s, kind is not None))


class TimedStore:
    """A store whose time is taken."""

    def __init__(self, store: LimitStore, observer: Observer) -> None:
        self._store = store
        self._observer = observer

    async def admit(self, ask: Ask) -> Admission | Refusal:
        """Take what is asked for, or nothing."""
        with _Timer(self._observer, "store", "admit"):
            return await self._store.admit(ask)

    async def renew(self, held: Sequence[Held]) -> frozenset[str]:
        """Lengthen leases."""
        with _Timer(self._observer, "store", "renew"):
            return await self._store.renew(held)

    async def settle(self, admission: Admission, tokens: int | None) -> None:
        """Settle an admission."""
        with _Timer(self._observer, "store", "settle"):
            await self._store.settle(admission, tokens)

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._store.aclose()


class TimedLedger:
    """A ledger whose time is taken, from the hand-over until it is durable."""

    def __init__(self, ledger: Ledger, observer: Observer) -> None:
        self._ledger = ledger
        self._observer = observer

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Hand a settlement over."""
        timer = _Timer(self._observer, "ledger", "settle")
        return _Timed(self._ledger.settle(event), timer)

    async def aclose(self) -> None:
        """Finish, and close."""
        await self._ledger.aclose()


class _Timed(Awaitable[None]):
    """Waits for something, on time."""

    __slots__ = ("_timer", "_what")

    def __init__(self, what: Awaitable[None], timer: _Timer) -> None:
        self._what = what
        self._timer = timer

    def __await__(self) -> Generator[Any, Any, None]:
        with self._timer:
            return (yield from self._what.__await__())


class TimedHolds:
    """What holds money, whose time is taken."""

    def __init__(self, holds: Holds, observer: Observer) -> None:
        self._holds = holds
        self._observer = observer

    async def hold(
        self, event: BillingEvent, amount_nano: int, credit_limit_nano: int, spare_nano: int = 0
    ) -> int | None:
        """Hold an amount."""
        with _Timer(self._observer, "ledger", "hold"):
            return await self._holds.hold(event, amount_nano, credit_limit_nano, spare_nano)

    async def extend(self, event: BillingEvent, amount_nano: int) -> int | None:
        """Hold more."""
        with _Timer(self._observer, "ledger", "extend"):
            return await self._holds.extend(event, amount_nano)
