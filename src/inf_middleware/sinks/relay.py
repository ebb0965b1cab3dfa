"""The relay: brings events from a ledger's outbox to its sinks, at least once, in order.

One process per ledger is elected. Each sink goes at its own pace, behind a durable cursor: what it
has not taken is offered again, by the next process if need be. A sink that is down is warned of
and never stops anything else.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

import anyio

from inf_middleware.domain.events import BillingEvent
from inf_middleware.ports import Outbox, Rejected, Sink

_log = logging.getLogger("inf_middleware.sinks")

# As many as OpenMeter, Lago and the like take in one request.
BATCH_MAX = 100

# How soon events of other processes are seen, and a dead relay is succeeded.
POLL_S = 1.0

# Between two tries of a sink that failed: doubled each time, up to a minute, with jitter.
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 60.0


class Relay:
    """Delivers to named sinks as long as it runs.

    `sleep` and `jitter` (0 to 1) are the clock and chance of the back-off.
    """

    def __init__(
        self,
        outbox: Outbox,
        sinks: Mapping[str, Sink],
        *,
        sleep: Callable[[float], "asyncio.Future[None]"] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._outbox = outbox
        self._sinks = dict(sinks)
        self._sleep = sleep or anyio.sleep
        self._jitter = jitter
        self._task: asyncio.Task[None] | None = None
        self._elected = False

    def start(self) -> None:
        """Begin to deliver on the running event loop; again after that loop has ended."""
        loop = asyncio.get_running_loop()
        task = self._task
        if task is not None and task.get_loop() is loop and not task.done():
            return
        self._elected = False
        self._task = loop.create_task(self._run(), name="inf-middleware-relay")

    async def drain(self, timeout_s: float) -> None:
        """Wait until all is delivered that can be, at most `timeout_s`."""
        task = self._task
        if task is None or task.done() or task.get_loop() is not asyncio.get_running_loop():
            return
        with anyio.move_on_after(timeout_s):
            while not self._elected or await self._has_pending():
                if not self._elected and not await self._outbox.elect():
                    return  # another process delivers
                await self._sleep(0.01)

    async def aclose(self) -> None:
        """Stop delivering; what is left waits in the outbox."""
        task, self._task = self._task, None
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            return
        task.cancel()
        await asyncio.wait([task])

    async def _run(self) -> None:
        while not await self._try_elect():
            await self._sleep(POLL_S)
        self._elected = True
        async with anyio.create_task_group() as group:
            for name, sink in self._sinks.items():
                group.start_soon(self._deliver, name, sink)

    async def _try_elect(self) -> bool:
        try:
            return await self._outbox.elect()
        except Exception as error:
            _log.warning("the relay cannot start yet: %s", error)
            return False

    async def _has_pending(self) -> bool:
        for name in self._sinks:
            if await self._outbox.pending(name, 1):
                return True
        return False

    async def _deliver(self, name: str, sink: Sink) -> None:
        failures = 0
        while True:
            events: Sequence[tuple[int, BillingEvent]] = ()
            try:
                generation = self._outbox.generation
                events = await self._outbox.pending(name, BATCH_MAX)
                if not events:
                    await self._outbox.wait(generation, POLL_S)
                    continue
                rejected = await _offer(name, sink, [event for _, event in events])
                await self._outbox.advance(name, events[-1][0], rejected)
                failures = 0
            except Exception as error:
                delay_s = min(BACKOFF_FIRST_S * 2**failures, BACKOFF_MAX_S)
                delay_s *= 0.5 + self._jitter() / 2
                failures = min(failures + 1, 20)
                _warn(name, events, error, delay_s)
                await self._sleep(delay_s)


async def _offer(name: str, sink: Sink, events: Sequence[BillingEvent]) -> Mapping[str, str]:
    try:
        await sink(events)
    except Rejected as rejected:
        ids = {event.id for event in events}
        reasons = {key: str(why) for key, why in rejected.reasons.items() if key in ids}
        for event_id, reason in reasons.items():
            _log.error("sink %s refused event %s for good: %a", name, event_id, reason)
        return reasons
    return {}


def _warn(
    name: str, events: Sequence[tuple[int, BillingEvent]], error: Exception, delay_s: float
) -> None:
    age = "unknown"
    if events:
        settled = datetime.fromisoformat(events[0][1].settled_at)
        age = f"{(datetime.now(UTC) - settled).total_seconds():.0f} s"
    _log.warning(
        "sink %s did not take its events (oldest is %s old); again in %.1f s: %a",
        name,
        age,
        delay_s,
        error,
    )
