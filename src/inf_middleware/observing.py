"""From the options on logs and metrics to who watches a stack, and the looks at how it stands."""

import asyncio
import logging
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from inf_middleware.call.health import LedgerHealth
from inf_middleware.call.leases import Leases
from inf_middleware.domain.observations import (
    RefusedCall,
    Sample,
    SettledCall,
    SinkSample,
    Timing,
)
from inf_middleware.ledgers.spool import SpoolingLedger
from inf_middleware.observers.logs import CallLog
from inf_middleware.ports import LimitStore, Observer
from inf_middleware.sinks.relay import Relay, Relays

_log = logging.getLogger("inf_middleware.metrics")

# A third of how often Prometheus usually asks.
SAMPLE_EVERY_S = 5.0

# What a look at the outbox may take: it reads two ends of an index.
SAMPLE_TIMEOUT_S = 2.0


def build_observer(option: Callable[[str], Any], *, logs_calls: bool) -> Observer | None:
    """Return who watches by the values in force of options; None where nobody does.

    `logs_calls`: where nothing is said, calls are logged.
    """
    deployment, by_account = option("deployment"), option("metrics_by_account")
    observers = [_EXPORTERS[name](deployment, by_account) for name in option("metrics")]
    log_calls = option("log_calls")
    if logs_calls if log_calls is None else log_calls:
        observers.append(CallLog())
    return observers[0] if len(observers) == 1 else _All(observers) if observers else None


def _prometheus(deployment: str, by_account: bool) -> Observer:
    from inf_middleware.observers.prometheus import (  # noqa: PLC0415 - of an extra
        PrometheusObserver,
    )

    return PrometheusObserver(deployment, by_account=by_account)


def _otel(deployment: str, by_account: bool) -> Observer:
    from inf_middleware.observers.otel import OtelObserver  # noqa: PLC0415 - of an extra

    return OtelObserver(deployment, by_account=by_account)


_EXPORTERS: dict[str, Callable[[str, bool], Observer]] = {
    "prometheus": _prometheus,
    "otel": _otel,
}


class _All:
    """Several who watch: one that fails does not keep anything from the others."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)

    def listens(self) -> bool:
        return any(observer.listens() for observer in self._observers)

    def refused(self, call: RefusedCall) -> None:
        self._tell("refused", call)

    def settled(self, call: SettledCall) -> None:
        self._tell("settled", call)

    def timed(self, timing: Timing) -> None:
        self._tell("timed", timing)

    def sampled(self, sample: Sample) -> None:
        self._tell("sampled", sample)

    def _tell(self, what: str, fact: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, what)(fact)
            except Exception:
                _log.exception("%s failed to take note of a call", type(observer).__name__)


class Sampler:
    """Looks at how the parts of a stack stand, every few seconds while the event loop runs.

    `store`, `spool`, `leases`, `health` and `relays` are None where the stack has none.
    """

    def __init__(
        self,
        observer: Observer,
        *,
        deployment: str,
        leases: Leases | None,
        store: LimitStore | None,
        health: LedgerHealth | None,
        spool: SpoolingLedger | None,
        relays: Relays | None,
    ) -> None:
        self._observer = observer
        self._deployment = deployment
        self._leases = leases
        self._store = store
        self._health = health
        self._spool = spool
        self._relays = relays
        self._leases_lost = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._last: Sample | None = None
        self._told: Mapping[Relay, Sequence[SinkSample]] = {}

    def start(self) -> None:
        """Begin to look, on the running event loop; again after that loop has ended."""
        loop = asyncio.get_running_loop()
        if self._loop is loop or (self._loop is not None and self._loop.is_running()):
            return
        self._loop = loop
        _live.add(self)
        _tick(weakref.ref(self), loop)

    async def begin(self) -> None:
        """Begin to look, when a server starts."""
        self.start()

    def is_of(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Whether it looks on this event loop."""
        return self._loop is loop

    async def sample(self) -> None:
        """Look once, and tell."""
        relays, leases = self._relays, self._leases
        if relays is not None:
            self._told = await relays.samples(SAMPLE_TIMEOUT_S)
        held = None if leases is None else leases.held
        lost = 0
        if leases is not None:
            lost, self._leases_lost = leases.lost - self._leases_lost, leases.lost
        is_away = getattr(self._store, "is_away", None)
        spooled = None if self._spool is None else self._spool.kept_bytes
        down = None if self._health is None else self._health.is_down
        self._last = Sample(
            running=None if held is None else len(held),
            reserved_tokens=None if held is None else sum(one.tokens for one in held),
            leases_lost=lost,
            storage_is_away=is_away if isinstance(is_away, bool) else None,
            ledger_is_away=None if down is None else down or bool(spooled),
            spooled_bytes=spooled,
            is_relay=None if relays is None else relays.is_elected,
            sinks=tuple(one for sinks in self._told.values() for one in sinks),
        )
        try:
            self._observer.sampled(self._of_all(self._last))
        except Exception:  # who watches must not stop what is watched
            _log.exception("how things stand could not be told")

    def _of_all(self, sample: Sample) -> Sample:
        """Return a sample with the gauges of all stacks here that go by the name of this one."""
        others = [
            (other, other._last)
            for other in _live.copy()
            if other._deployment == self._deployment and other is not self
        ]
        lasts = [last for _, last in others if last is not None]
        # A spool is of a ledger, and stacks may share that.
        spools = {other._spool: last.spooled_bytes for other, last in others if last is not None}
        spools.pop(self._spool, None)
        # So is a relay; those of other ledgers may have a sink of the same name.
        told = {relay: sinks for other, _ in others for relay, sinks in other._told.items()}
        beside = [one for relay in told.keys() - self._told.keys() for one in told[relay]]
        return sample._replace(
            running=_sum(sample.running, [last.running for last in lasts]),
            reserved_tokens=_sum(sample.reserved_tokens, [last.reserved_tokens for last in lasts]),
            spooled_bytes=_sum(sample.spooled_bytes, spools.values()),
            storage_is_away=_any(sample.storage_is_away, [last.storage_is_away for last in lasts]),
            ledger_is_away=_any(sample.ledger_is_away, [last.ledger_is_away for last in lasts]),
            is_relay=_any(sample.is_relay, [last.is_relay for last in lasts]),
            sinks=tuple(_with(one, beside) for one in sample.sinks),
        )

    async def aclose(self) -> None:
        """Stop looking, after a last look."""
        if self._loop is not asyncio.get_running_loop():
            return
        if self._timer is not None:
            self._timer.cancel()
        task = self._task
        if task is not None and not task.done():
            await asyncio.wait([task])
        await self.sample()
        self._loop = None
        _live.discard(self)

    def look_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look now, and again after a while."""
        self._timer = loop.call_later(SAMPLE_EVERY_S, _tick, weakref.ref(self), loop)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self.sample(), name="inf-middleware-sample")


def _sum(own: int | None, others: Iterable[int | None]) -> int | None:
    return None if own is None else own + sum(other or 0 for other in others)


def _with(one: SinkSample, others: Iterable[SinkSample]) -> SinkSample:
    namesakes = [other for other in others if other.sink == one.sink]
    return one._replace(
        pending=_sum(one.pending, [other.pending for other in namesakes]),
        oldest_s=_max(one.oldest_s, [other.oldest_s for other in namesakes]),
        lag_s=_max(one.lag_s, [other.lag_s for other in namesakes]),
    )


def _max(own: float | None, others: Iterable[float | None]) -> float | None:
    return None if own is None else max([own, *(other or 0.0 for other in others)])


def _any(own: bool | None, others: Iterable[bool | None]) -> bool | None:
    return None if own is None else own or any(others)


# All that are in use in this process: whoever is asked for metrics looks first.
_live: "weakref.WeakSet[Sampler]" = weakref.WeakSet()


def _tick(found: "weakref.ref[Sampler]", loop: asyncio.AbstractEventLoop) -> None:
    # Weakly: a stack that was dropped without being shut down is not kept by its timer.
    sampler = found()
    if sampler is not None:
        sampler.look_soon(loop)


async def sample_all() -> None:
    """Look at once, on the running event loop."""
    loop = asyncio.get_running_loop()
    for sampler in [one for one in _live if one.is_of(loop)]:
        await sampler.sample()
