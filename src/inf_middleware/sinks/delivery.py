"""The deliveries to one sink: first ones in order behind a durable cursor, and replays."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.moments import seconds_written
from inf_middleware.ports import Attempt, Outbox, Sink
from inf_middleware.sinks.offer import Verdict, offer

_log = logging.getLogger("inf_middleware.sinks")

# As many as OpenMeter, Lago and the like take in one request.
BATCH_MAX = 100

# How soon events and wishes of other processes are seen, and a dead relay is succeeded.
POLL_S = 1.0

# After a batch that was not full: what comes meanwhile goes together, so that moving the cursor
# costs the ledger at most twenty fsyncs a second beside its own.
PACE_S = 0.05

# Between two tries of a sink that failed: doubled each time, up to a minute, with jitter.
BACKOFF_FIRST_S = 0.5
BACKOFF_MAX_S = 60.0

# A far end may ask for more patience than a minute, and shall not stop deliveries for a day.
RETRY_AFTER_MAX_S = 900.0


class Pace(NamedTuple):
    """Time and chance of deliveries: `sleep`, `jitter` (0 to 1), `now`, and how long an offer."""

    sleep: Callable[[float], Awaitable[None]]
    jitter: Callable[[], float]
    now: Callable[[], datetime]
    offer_timeout_s: float


@dataclass(slots=True)
class Tally:
    """What has come of the deliveries to one sink since somebody last looked.

    `lag_s`: how old the oldest event of the last batch was when it was taken.
    """

    taken: int = 0
    rejected: int = 0
    failures: int = 0
    lag_s: float | None = None


class _NotTaken(Exception):  # noqa: N818 - a state of this delivery
    """The sink did not take the `events`, and the verdict says why."""

    def __init__(self, events: Sequence[BillingEvent], verdict: Verdict) -> None:
        super().__init__(str(verdict.failure))
        self.events = events
        self.verdict = verdict


class Delivery:
    """Brings events of an outbox to one named sink, as long as this process is elected."""

    def __init__(
        self, outbox: Outbox, name: str, sink: Sink, pace: Pace, tally: Tally | None = None
    ) -> None:
        self._outbox = outbox
        self._name = name
        self._sink = sink
        self._pace = pace
        self._tally = tally or Tally()
        self._failures = 0
        self._known = False
        self._looked_s = -POLL_S  # when for replays, and found none
        self._first_max = BATCH_MAX
        self._again_max = BATCH_MAX

    async def run(self) -> None:
        """Deliver until another process does."""
        while True:
            try:
                generation = self._outbox.generation
                # Asked each time: who lost the election with its connection must not go on.
                if not await self._outbox.elect(self._name):
                    return
                count = await self._deliver()
                self._failures = 0
                if not count:
                    await self._outbox.wait(generation, POLL_S)
                elif count < BATCH_MAX:
                    await self._pace.sleep(PACE_S)
            except _NotTaken as error:
                self._tally.failures += 1
                if error.verdict.done:
                    self._failures = 0
                delay_s = self._back_off(error.verdict.after_s)
                self._warn(error, delay_s)
                await self._pace.sleep(delay_s)
            except Exception as error:
                delay_s = self._back_off(None)
                _log.warning(
                    "deliveries to sink %s wait for the ledger; again in %.1f s: %a",
                    self._name,
                    delay_s,
                    error,
                )
                await self._pace.sleep(delay_s)

    async def _deliver(self) -> int:
        """Offer one batch of first deliveries and one of replays; return how many were done."""
        if not self._known:
            await self._outbox.advance(self._name, 0, {})
            self._known = True
        return await self._first() + await self._again()

    async def _first(self) -> int:
        rows = await self._outbox.pending(self._name, self._first_max)
        is_full = len(rows) == self._first_max
        window_s: float | None = getattr(self._sink, "dedupe_window_s", None)
        fresh = False
        if rows and window_s is not None:
            rows, fresh = await self._within(window_s, rows)
        if not rows:
            return 0
        events = [event for _, event in rows]
        verdict = await offer(self._name, self._sink, events, self._pace.offer_timeout_s)
        if verdict.done:
            self._tally.taken += verdict.done - len(verdict.rejected)
            self._tally.lag_s = self._age_s(events[0])
            await self._advance(rows[verdict.done - 1][0], verdict.rejected)
        if verdict.failure is not None:
            if not verdict.done and not verdict.not_taken:
                self._first_max = max(len(events) // 2, 1)  # what a slow sink gets through
            if fresh and verdict.not_taken:
                # Of an older attempt nothing is known for that; of this one, all.
                await self._outbox.begin(self._name, Attempt(0, self._pace.now()))
            raise _NotTaken(events[verdict.done :], verdict)
        # Little by little: a sink that is slow is not to fail at every second batch.
        self._first_max = min(self._first_max + max(self._first_max // 4, 1), BATCH_MAX)
        return BATCH_MAX if is_full else len(rows)  # there may be more

    async def _again(self) -> int:
        # Each look waits its turn behind commits: under load not one for every batch.
        now_s = asyncio.get_running_loop().time()
        if now_s - self._looked_s < POLL_S:
            return 0
        replay = await self._outbox.replay(self._name, self._again_max)
        if replay is None:
            self._looked_s = now_s
            return 0
        rejected: Mapping[str, str] = {}
        if replay.events:
            events = replay.events
            verdict = await offer(self._name, self._sink, events, self._pace.offer_timeout_s)
            if verdict.failure is not None:
                # A replay goes on by whole batches: the next is one that a slow sink gets through.
                self._again_max = verdict.done or max(len(events) // 2, 1)
                raise _NotTaken(events, verdict)
            rejected = verdict.rejected
            self._tally.taken += len(events) - len(rejected)
            self._log_rejected(rejected)
        await self._outbox.replayed(self._name, replay, rejected)
        self._again_max = BATCH_MAX
        return BATCH_MAX  # there may be more

    async def _within(
        self, window_s: float, rows: Sequence[tuple[int, BillingEvent]]
    ) -> tuple[Sequence[tuple[int, BillingEvent]], bool]:
        """Return what may be sent, and whether it is for the first time; older is set aside."""
        attempt = await self._outbox.attempt(self._name)
        now = self._pace.now()
        if attempt is None or attempt.place < rows[0][0]:
            await self._outbox.begin(self._name, Attempt(rows[-1][0], now))
            return rows, True
        # The same batch until its outcome is known: what came later has not been tried yet.
        tried = [row for row in rows if row[0] <= attempt.place]
        if (now - attempt.began).total_seconds() <= window_s:
            return tried, False
        reason = (
            f"needs reconcile: sent at {attempt.began:%Y-%m-%dT%H:%M:%SZ} with unknown outcome, and"
            f" the far end knows an id again for {seconds_written(window_s)} s only; look"
            " there, and replay it or leave it"
        )
        await self._advance(tried[-1][0], {event.id: reason for _, event in tried})
        rest = rows[len(tried) :]
        if not rest:
            return (), False
        await self._outbox.begin(self._name, Attempt(rest[-1][0], now))
        return rest, True

    async def _advance(self, place: int, rejected: Mapping[str, str]) -> None:
        self._log_rejected(rejected)
        await self._outbox.advance(self._name, place, rejected)

    def _log_rejected(self, rejected: Mapping[str, str]) -> None:
        self._tally.rejected += len(rejected)
        for event_id, reason in rejected.items():
            _log.error("event %s is a dead letter of sink %s: %a", event_id, self._name, reason)

    def _back_off(self, after_s: float | None) -> float:
        jitter = self._pace.jitter()
        delay_s = min(BACKOFF_FIRST_S * 2.0**self._failures, BACKOFF_MAX_S) * (0.5 + jitter / 2)
        self._failures = min(self._failures + 1, 20)  # 2**20 half seconds are beyond any maximum
        if after_s is None:
            return delay_s
        # Not before it is asked for, and not all at that very moment.
        asked_s = min(max(after_s, 0.0), RETRY_AFTER_MAX_S) * (1 + jitter / 10)
        return max(delay_s, asked_s)

    def _warn(self, error: _NotTaken, delay_s: float) -> None:
        _log.warning(
            "sink %s did not take its events (oldest is %.0f s old); again in %.1f s: %s %a",
            self._name,
            self._age_s(error.events[0]),
            delay_s,
            type(error.verdict.failure).__name__,
            str(error.verdict.failure),  # of a file it alone has the path
        )

    def _age_s(self, event: BillingEvent) -> float:
        settled = datetime.fromisoformat(event.settled_at)
        if settled.tzinfo is None:
            settled = settled.replace(tzinfo=UTC)
        return (self._pace.now() - settled).total_seconds()
