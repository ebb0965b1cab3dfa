"""A flood of one service by 16 clients, on all levels, one binding limit per account.

By hand, on the real minute and a real Redis that is started for it:

    python -m tests.live.flood --window 60 --seconds 300
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.live.admissions import (
    Served,
    at_once_on_average,
    in_window_on_average,
    most_at_once,
    most_in_window,
    one,
    read_logs,
    tokens,
)
from tests.live.client import Client
from tests.live.fleet import Server, fleet
from tests.live.plans import LIMITS, Limit, Plan, plans, tiers_toml
from tests.redis_servers import redis_server

CLIENTS = 16

# Of what the limits allow, how much demand above supply gets on a machine with time to spare.
SHARE_MIN = 0.97

# The same where other work may take the processor for a while between two requests: what the
# library itself could waste is at least a fifth of a limit (one slot, one worker's share).
SHARE_MIN_BUSY = 0.85

# When a slot is free nobody knows, and the second that refusals name would leave it unused: these
# clients are impatient. A server that is gone is tried again after as long.
_IMPATIENCE_S = 0.1

# In a burst each request is kept in progress for longer than a small machine takes for all of them.
_BURST_S = 2.5


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one account got: the most ever, and the share on average, of its binding limit."""

    plan: Plan
    served: int
    most: int
    share: float

    def __str__(self) -> str:
        plan = self.plan
        return (
            f"{plan.level:6} {plan.bound:12} limit {plan.limit:7,}  most {self.most:7,}"
            f"  used {self.share:7.2%}  of {self.served:6,} requests"
        )


@dataclass
class Report:
    """All accounts, and how many answers of each kind there were."""

    outcomes: list[Outcome] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def over(self) -> list[str]:
        """The accounts that certainly got more than their limit."""
        return [str(outcome) for outcome in self.outcomes if outcome.most > outcome.plan.limit]

    @property
    def statuses(self) -> set[str]:
        """The statuses that were answered, and "lost:" where there was no answer."""
        return {kind.split()[0] for kind in self.answers}

    def wasted(self, share_min: float = SHARE_MIN) -> list[str]:
        """The accounts that got less than this share of what they might have."""
        return [str(outcome) for outcome in self.outcomes if outcome.share < share_min]

    def __str__(self) -> str:
        counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(self.answers.items()))
        return "\n".join([*map(str, self.outcomes), counts])


class Flood:
    """A service in processes of its own, and what is sent to it."""

    def __init__(
        self, made: Sequence[Plan], folder: Path, servers: Sequence[Server], seed: int = 1
    ) -> None:
        self.plans = made
        self.servers = list(servers)
        self.answers: Counter[str] = Counter()
        self.killed: dict[int, float] = {}
        self.rng = random.Random(seed)
        self._folder = folder
        self._begun = self._ended = 0.0

    async def run(self, seconds: float, meanwhile: Callable[[], Any] | None = None) -> None:
        """Keep all accounts above their limits for a time; `meanwhile()` runs beside it."""
        self._begun = time.monotonic()
        self._ended = self._begun + seconds
        beside = asyncio.create_task(meanwhile()) if meanwhile else None
        async with _clients() as clients:
            lanes = [plan for plan in self.plans for _ in range(plan.lanes)]
            self.rng.shuffle(lanes)
            pairs = zip(itertools.cycle(clients), lanes, strict=False)
            await asyncio.gather(*(self._lane(client, plan) for client, plan in pairs))
        if beside is not None:
            beside.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await beside

    def report(self) -> Report:
        """What the logs prove of the flood that has run."""
        served = read_logs(self._folder, self.killed)
        report = Report(answers=self.answers)
        for plan in self.plans:
            own = [call for call in served if call.key == plan.key]
            report.outcomes.append(self._outcome(plan, own))
        return report

    async def cannot_use(self) -> list[str]:
        """The accounts that, at rest, do not get the whole of their limit at once, and no more."""
        found = []
        async with _clients() as clients:
            for bound in LIMITS:
                made = [plan for plan in self.plans if plan.bound == bound]
                for plan, admitted in zip(
                    made,
                    await asyncio.gather(*(self._burst(clients, plan) for plan in made)),
                    strict=True,
                ):
                    if admitted != plan.capacity:
                        found.append(f"{plan.key}: {admitted} of {plan.capacity}")
        return found

    async def _lane(self, client: Client, plan: Plan) -> None:
        while (left := self._ended - time.monotonic()) > 0:
            wait_s = await self._ask(client, plan, plan.hold_s * self.rng.uniform(0.75, 1.25))
            await asyncio.sleep(min(wait_s, left))

    async def _ask(self, client: Client, plan: Plan, hold_s: float) -> float:
        """Send one request; returns how long to wait before the next one."""
        port = self.rng.choice(self.servers).port
        stream = self.rng.random() < 0.5
        try:
            answer = await client.post(port, plan.key, plan.asking(stream=stream, hold_s=hold_s))
        except (OSError, asyncio.IncompleteReadError) as error:
            self.answers[f"lost: {error!r}"] += 1
            return _IMPATIENCE_S
        if answer.status == 200:
            self.answers["200"] += 1
            return 0.0
        self.answers[f"{answer.status} {answer.code}"] += 1
        if answer.code == "concurrency_limit_exceeded":
            return _IMPATIENCE_S
        return answer.retry_after_s

    async def _burst(self, clients: Sequence[Client], plan: Plan) -> int:
        """Send one request more than there is room for, at once; returns how many got in."""
        pairs = zip(range(plan.capacity + 1), itertools.cycle(clients), strict=False)
        hold_s = _BURST_S if plan.bound == "concurrency" else 0.0
        waits = await asyncio.gather(*(self._ask(client, plan, hold_s) for _, client in pairs))
        return waits.count(0.0)

    def _outcome(self, plan: Plan, own: list[Served]) -> Outcome:
        # The first window fills up; from then on there is more demand than supply.
        begin = min((call.entered for call in own), default=self._begun) + plan.window_s
        if plan.bound == "concurrency":
            most = most_at_once(own)
            average = at_once_on_average(own, begin, self._ended)
        else:
            weight = tokens if plan.bound == "tokens" else one
            most = most_in_window(own, plan.window_s, weight)
            average = in_window_on_average(own, plan.window_s, weight, begin, self._ended)
        return Outcome(plan, len(own), most, average / plan.limit)


@contextlib.asynccontextmanager
async def _clients() -> Any:
    clients = [Client() for _ in range(CLIENTS)]
    try:
        yield clients
    finally:
        for client in clients:
            await client.aclose()


@contextlib.contextmanager
def flooding(
    storage: str,
    *,
    workers: Sequence[int],
    window_s: int = 5,
    limits: Sequence[Limit] = LIMITS,
    options: Mapping[str, Any] | None = None,
) -> Iterator[Flood]:
    """A service on a store, ready to be flooded; `options` are further ones of `TierLimiter`."""
    made = plans(window_s, limits)
    with tempfile.TemporaryDirectory(prefix="inf-flood-") as name:
        folder = Path(name)
        (folder / "tiers.toml").write_text(tiers_toml(made))
        limiter = {
            "storage": storage,
            "tiers": str(folder / "tiers.toml"),
            "accounts": {plan.key: plan.key for plan in made},
            **(options or {}),
        }
        with fleet(folder, limiter, workers) as servers:
            yield Flood(made, folder, servers)


def main() -> None:
    """Run a flood by hand, and print what it showed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--window", type=int, default=5, help="seconds of the rates' window")
    parser.add_argument("--seconds", type=float, default=30, help="how long to flood")
    parser.add_argument("--workers", type=int, nargs="+", default=[4, 1, 1], help="of each server")
    parser.add_argument("--storage", help="of the limits; without it a Redis is started")
    chosen = parser.parse_args()
    with contextlib.ExitStack() as stack:
        storage = chosen.storage or stack.enter_context(redis_server()).uri
        flood = stack.enter_context(
            flooding(
                storage,
                workers=chosen.workers,
                window_s=chosen.window,
                # No slow moment of this machine is taken for an outage, in which shares hold.
                options={"on_storage_error": "refuse", "storage_timeout_s": 5.0},
            )
        )
        asyncio.run(flood.run(chosen.seconds))
        report = flood.report()
    print(report)
    print("over:", report.over or "none")
    print(f"below {SHARE_MIN:.0%}:", report.wasted() or "none")


if __name__ == "__main__":
    main()
