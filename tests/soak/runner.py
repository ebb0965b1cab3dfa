"""One soak: all is started, asked and broken for so long; then it comes to rest, and adds up."""

import asyncio
import contextlib
import logging
import random
import signal
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from inf_middleware.domain.errors import MiddlewareError
from tests.soak import audit, rest, schedule, watch
from tests.soak.faults import Faults
from tests.soak.house import House, opened
from tests.soak.load import Load
from tests.soak.operator import Operator

_TELL_S = 10.0

# Before the first fault: each worker has opened what it opens, and its caches are full.
_WARM_REQUESTS = 400

# A sink that failed is tried again within a minute, and so long after the last fault a hold of a
# dead process has ended; a machine may be five times slower than it should be.
_REST_TIMEOUT_S = 300.0
_LOOK_S = 1.0

_MIB = 1024 * 1024


def main(asked: Namespace) -> int:
    """Soak, and say what is wrong; the exit code."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # also into a file
    # Asked to end, it ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # The operator's ledger says each time that it is away, which is what is done to it.
    logging.getLogger("inf_middleware").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory(prefix="inf-soak-") as name, opened(Path(name)) as house:
        soak = Soak(house, asked.minutes * 60, asked.seed)
        asyncio.run(soak.run())
        if soak.wrong:
            print(f"what the server said last:\n{house.server.running.said()}\n")
    for one in soak.wrong:
        print(f"WRONG {one}")
    print(f"{len(soak.wrong)} things are wrong" if soak.wrong else "nothing is wrong")
    return 1 if soak.wrong else 0


class Soak:
    """`wrong` is what was found; what is seen on the way is printed."""

    def __init__(self, house: House, seconds: float, seed: int) -> None:
        self.wrong: list[str] = []
        self._house = house
        self._seconds = seconds
        self._seed = seed
        self._operator = Operator(house.ledger_uri)

    async def run(self) -> None:
        """From the accounts to the last look at the ledger."""
        house = self._house
        try:
            buyers = await self._operator.open_accounts()
            await asyncio.to_thread(house.server.start)
            load = Load(house.server.port, buyers, self._seed)
            start = await self._warm_up(load)
            survivor = random.Random(self._seed).choice(sorted(house.server.workers))
            watched = watch.Watch(house)
            faults = Faults(house, self._operator, survivor)
            await self._break(load, faults, watched)
            states = await self._come_to_rest(load, start, survivor)
            self._judge_memory(watched, states, start)
            await self._end()
            self.wrong += await audit.differences(house, load, self._operator.book)
            self.wrong += await self._operator.differences()
        finally:
            await self._operator.aclose()

    async def _warm_up(self, load: Load) -> rest.Start:
        await load.run("warm-up", requests=_WARM_REQUESTS)
        before: dict[int, Any] | None = None
        async with asyncio.timeout(_REST_TIMEOUT_S):
            while True:
                states = await watch.states(self._house, timeout_s=_REST_TIMEOUT_S, collects=True)
                kinds = {pid: rest.kinds_of(state) for pid, state in states.items()}
                if kinds == before and not await audit.waiting(self._house, self._operator.book):
                    break
                before = kinds
                await asyncio.sleep(_LOOK_S)
        print(f"warm after {load.asked} requests: {rest.told(states.values())}")
        return rest.Start(states, rest.pools(self._house))

    async def _break(self, load: Load, faults: Faults, watched: watch.Watch) -> None:
        lanes = schedule.plan(self._seed, self._seconds)
        print(
            f"{self._seconds / 60:g} minutes, seed {self._seed}: {sum(map(len, lanes))} faults to"
            f" come; worker {faults.survivor} is to live through them",
        )
        ends_s = watched.now_s + self._seconds
        running = asyncio.create_task(load.run("faults"))
        watching = asyncio.create_task(watched.run())
        making = [asyncio.create_task(faults.run(lane)) for lane in lanes]
        try:
            while watched.now_s < ends_s or not all(task.done() for task in making):
                failed = [task for task in [running, *making] if task.done() and task.exception()]
                if failed:
                    await failed[0]
                await asyncio.sleep(min(_TELL_S, max(ends_s - watched.now_s, _LOOK_S)))
                await self._tell(load, faults, watched)
            load.stop()
            await running
        finally:
            for task in [running, watching, *making]:
                task.cancel()
            await asyncio.gather(running, watching, *making, return_exceptions=True)
        watched.ended_s = watched.now_s
        print(f"faults: {_counts(faults.made)}\nanswers: {_counts(load.answers)}")

    async def _tell(self, load: Load, faults: Faults, watched: watch.Watch) -> None:
        states = await watch.states(self._house, timeout_s=1.0)
        workers = []
        for pid in sorted(self._house.server.workers):
            last = watched.samples[pid][-1] if watched.samples[pid] else None
            tasks = sum(states[pid]["tasks"].values()) if pid in states else "?"
            if last is not None:
                workers.append(
                    f"{pid}: {last.rss / _MIB:.1f} MiB {last.descriptors} fds {tasks} tasks"
                )
        print(
            f"{watched.now_s:6.0f} s  {load.asked:6} asked {len(load.acknowledged):6} whole"
            f" {load.left:5} left {sum(faults.made.values()):4} faults |"
            f" {', '.join(faults.now) or 'none now'} | {' | '.join(workers)}",
        )

    async def _come_to_rest(
        self, load: Load, start: rest.Start, survivor: int
    ) -> dict[int, dict[str, Any]]:
        """Wait until nothing is open beyond the start; what does not end in time is wrong."""
        house = self._house
        deadline = time.monotonic() + _REST_TIMEOUT_S
        tell_s = time.monotonic() + _TELL_S
        accounts = sorted({one.account for one in load.acknowledged.values()})
        while True:
            states = await watch.states(house, timeout_s=_REST_TIMEOUT_S)
            open_still = [
                f"worker {pid}: {one}"
                for pid, state in states.items()
                for one in start.beyond(state)
            ]
            with contextlib.suppress(MiddlewareError):
                open_still += await audit.waiting(house, self._operator.book)
                open_still += await audit.in_progress(house, accounts)
            if survivor not in states:
                open_still.append(f"worker {survivor} does not answer")
            if not open_still or time.monotonic() > deadline:
                break
            if time.monotonic() > tell_s:
                tell_s += _TELL_S
                print(f"not at rest yet: {'; '.join(open_still)}")
            await asyncio.sleep(_LOOK_S)
        self.wrong += [f"at rest there is still: {one}" for one in open_still]
        states = await watch.states(house, timeout_s=_REST_TIMEOUT_S, collects=True)
        print(f"at rest: {rest.told(states.values())}")
        return states

    def _judge_memory(
        self, watched: watch.Watch, states: dict[int, dict[str, Any]], start: rest.Start
    ) -> None:
        for growth in watched.growths():
            served = states[growth.pid]["served"] if growth.pid in states else 0
            most = watch.growth_bytes_max(served)
            said = (
                f"worker {growth.pid}: memory grew by {growth.grown_bytes / _MIB:+.2f} MiB within"
                f" {growth.minutes:.1f} minutes ({growth.per_hour_bytes / _MIB:+.2f} MiB an hour),"
                f" {most / _MIB:.1f} MiB are granted; {served} calls served"
            )
            print(said)
            if growth.grown_bytes > most:
                self.wrong.append(said)
        for pid, state in states.items():
            grown = start.grown(state)
            print(f"worker {pid}: objects beyond the start: {_counts(grown) or 'none'}")
            most = rest.objects_max(state["served"])
            self.wrong += [
                f"worker {pid} has {count} × {kind} beyond the start, {most} are granted"
                for kind, count in grown.items()
                if count > most
            ]

    async def _end(self) -> None:
        house = self._house
        if not await asyncio.to_thread(house.server.stop):
            self.wrong.append("the server did not end when it was asked to")
        connected = house.redis.ask("CLIENT LIST")
        if len(connected) > 1:  # who asks is one of them
            self.wrong.append(f"connections to Redis are left: {connected}")
        backends = await audit.rows(
            self._operator.book,
            "SELECT application_name, state, query FROM pg_stat_activity"
            " WHERE datname = current_database() AND client_addr IS NOT NULL",
        )
        if backends:
            self.wrong.append(f"connections to PostgreSQL are left: {list(map(tuple, backends))}")
        code, said = await audit.reconcile(house)
        print(f"inf-middleware ledger reconcile ended with {code}:\n{said}")
        if code:
            self.wrong.append(f"reconcile ended with {code}")


def _counts(counted: Counter[str]) -> str:
    return ", ".join(f"{count} × {name}" for name, count in counted.most_common())
