"""The relay: brings events from a ledger's outbox to its sinks, at least once, in order.

For each sink one of the processes that have it is elected. Each sink goes at its own pace, behind a
durable cursor: what it has not taken is offered again, by the next process if need be. A sink that
is down is warned of and never stops anything else.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

import anyio

from inf_middleware.background import Background
from inf_middleware.domain.observations import SinkSample
from inf_middleware.ports import Backlog, Backlogs, Outbox, Sink
from inf_middleware.sinks.delivery import POLL_S, Delivery, Pace, Tally
from inf_middleware.sinks.offer import OFFER_TIMEOUT_S

_log = logging.getLogger("inf_middleware.sinks")

# How long the end of a server waits for one sink to let go of its connections.
CLOSE_TIMEOUT_S = 2.0


class Relay:
    """Delivers to named sinks as long as it runs.

    `sleep`, `jitter` (0 to 1) and `now` are the clock and chance of the back-off;
    `offer_timeout_s` is how long a sink may take for one batch.
    """

    def __init__(
        self,
        outbox: Outbox,
        sinks: Mapping[str, Sink],
        *,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        jitter: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        offer_timeout_s: float = OFFER_TIMEOUT_S,
    ) -> None:
        self._outbox = outbox
        self._sinks = dict(sinks)
        self._pace = Pace(sleep, jitter, now, offer_timeout_s)
        self._delivering, self._stopping = Background(), Background()
        self._elected: set[str] = set()
        self._tallies = {name: Tally() for name in self._sinks}

    @property
    def is_elected(self) -> bool:
        """Whether this process is the one that delivers, to one of the sinks at least."""
        return any(map(self._delivers, self._sinks))

    async def samples(self, timeout_s: float) -> tuple[SinkSample, ...]:
        """Return how deliveries stand; what was counted is counted anew from here on.

        What waits is not told where the ledger does not say it in `timeout_s`.
        """
        backlogs: dict[str, Backlog] = {}
        for name in self._sinks:
            if not self._delivers(name):  # whoever does tells it
                backlogs[name] = Backlog(0, None)
        if isinstance(self._outbox, Backlogs):
            try:
                with anyio.move_on_after(timeout_s):
                    for name in self._sinks.keys() - backlogs.keys():
                        backlogs[name] = await self._outbox.backlog(name)
            except Exception as error:
                _log.warning("it is not known what waits for sinks: %s", error)
        return tuple(self._sample(name, backlogs.get(name)) for name in self._sinks)

    def start(self) -> None:
        """Begin to deliver on the running event loop; again after that loop has ended."""
        if not self._delivering.is_running:
            self._elected = set()
            self._delivering.start(self._run, "inf-middleware-relay")

    async def drain(self, timeout_s: float) -> None:
        """Wait until all is delivered that can be, at most `timeout_s`."""
        task = self._delivering.task
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            return
        with anyio.move_on_after(timeout_s):
            try:
                for name in self._sinks:
                    while await self._has_pending(name):
                        await self._pace.sleep(0.01)
            except Exception as error:
                _log.warning("what is left is delivered at the next start: %a", error)

    async def aclose(self) -> None:
        """Stop delivering, and close the sinks; what is left waits in the outbox."""
        if self._delivering.loop is not asyncio.get_running_loop():
            self._delivering = Background()
            return
        await self._stop()
        for name, sink in self._sinks.items():
            close = getattr(sink, "aclose", None)
            if close is not None:
                await _let_go(name, close)

    def abandon(self) -> None:
        """Stop delivering, told on any thread: who could close it is gone.

        The sinks stay as they are, for others may have been given them.
        """
        loop = self._delivering.loop
        if loop is not None and self._delivering.task is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nothing goes on
                loop.call_soon_threadsafe(self._stopping.start, self._stop, "inf-middleware-relay")

    async def _stop(self) -> None:
        ending, self._delivering = self._delivering, Background()
        await ending.end()
        for name in self._sinks:
            await _let_go(name, partial(self._outbox.resign, name))

    async def _run(self) -> None:
        async with anyio.create_task_group() as group:
            for name, sink in self._sinks.items():
                group.start_soon(self._deliver, name, sink)

    async def _deliver(self, name: str, sink: Sink) -> None:
        while True:
            while not await self._try_elect(name):
                await self._pace.sleep(POLL_S)
            self._elected.add(name)
            await Delivery(self._outbox, name, sink, self._pace, self._tallies[name]).run()
            self._elected.discard(name)
            self._tallies[name].lag_s = None
            _log.warning(
                "another process delivers to sink %s now; this one waits for its turn", name
            )

    def _delivers(self, name: str) -> bool:
        return name in self._elected and self._delivering.task is not None

    def _sample(self, name: str, backlog: Backlog | None) -> SinkSample:
        tally = self._tallies[name]
        sample = SinkSample(
            sink=name,
            pending=backlog.events if backlog else None,
            oldest_s=self._age_s(backlog) if backlog else None,
            lag_s=tally.lag_s if self._delivers(name) else 0.0,
            taken=tally.taken,
            rejected=tally.rejected,
            failures=tally.failures,
        )
        tally.taken = tally.rejected = tally.failures = 0
        return sample

    def _age_s(self, backlog: Backlog) -> float:
        if backlog.oldest_at is None:
            return 0.0
        return max((self._pace.now() - backlog.oldest_at).total_seconds(), 0.0)

    async def _try_elect(self, name: str) -> bool:
        try:
            return await self._outbox.elect(name)
        except Exception as error:
            _log.warning("deliveries to sink %s cannot start yet: %s", name, error)
            return False

    async def _has_pending(self, name: str) -> bool:
        """Tell whether this process is still to deliver something, or may be."""
        if name in self._elected:
            return bool(await self._outbox.pending(name, 1))
        return await self._outbox.elect(name)  # else another process delivers


async def _let_go(name: str, close: Callable[[], Awaitable[None]]) -> None:
    try:
        with anyio.move_on_after(CLOSE_TIMEOUT_S):
            await close()
    except Exception as error:
        _log.warning("sink %s did not close cleanly: %a", name, error)


class Relays:
    """The relays of a stack: one for each sink, since other stacks have others beside it."""

    def __init__(self, relays: Sequence[Relay]) -> None:
        self._relays = tuple(relays)

    @property
    def is_elected(self) -> bool:
        """Whether this process is the one that delivers, to one of the sinks at least."""
        return any(relay.is_elected for relay in self._relays)

    async def samples(self, timeout_s: float) -> dict[Relay, tuple[SinkSample, ...]]:
        """Return how deliveries of each stand, as `Relay.samples` does."""
        found = await asyncio.gather(*(relay.samples(timeout_s) for relay in self._relays))
        return dict(zip(self._relays, found, strict=True))

    def start(self) -> None:
        """Begin to deliver on the running event loop, where none does."""
        for relay in self._relays:
            relay.start()
