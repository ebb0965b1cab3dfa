"""How each fault of the schedule is made, and how it ends."""

import asyncio
import contextlib
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from tests.soak.house import House
from tests.soak.operator import Operator
from tests.soak.schedule import Planned

# What is done, and what ends it; both in a thread, for they wait for processes.
_Fault = tuple[Callable[[], object], Callable[[], object]]


class Faults:
    """Makes what is planned, when it is planned; `survivor` is the worker that is never killed."""

    def __init__(self, house: House, operator: Operator, survivor: int) -> None:
        self.made: Counter[str] = Counter()
        self.now: list[str] = []
        self.survivor = survivor
        self._house = house
        self._operator = operator
        self._faults = {**_of_servers(house), **_of_far_ends(house)}

    async def run(self, lane: list[Planned]) -> None:
        """Make the faults of a lane one after the other, each at its time or as soon as may be."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for planned in lane:
            await asyncio.sleep(begun + planned.at_s - loop.time())
            self.now.append(planned.name)
            try:
                await self._make(planned)
            finally:
                self.now.remove(planned.name)
            self.made[planned.name] += 1

    async def _make(self, planned: Planned) -> None:
        changes = self._changes(planned.choice)
        if planned.name in changes:
            await changes[planned.name]()
            return
        begin, end = self._faults.get(planned.name) or self._of_workers(planned)
        await asyncio.to_thread(begin)
        try:
            await asyncio.sleep(planned.lasts_s)
        finally:
            await asyncio.to_thread(end)

    def _of_workers(self, planned: Planned) -> _Fault:
        workers = sorted(self._house.server.workers)
        others = [pid for pid in workers if pid != self.survivor]
        if planned.name == "worker killed":
            return lambda: [_send(pid, signal.SIGKILL) for pid in others], _nothing
        assert planned.name == "worker paused", planned.name
        pid = workers[int(planned.choice * len(workers))]
        return lambda: _send(pid, signal.SIGSTOP), lambda: _send(pid, signal.SIGCONT)

    def _changes(self, choice: float) -> dict[str, Callable[[], Awaitable[Any]]]:
        tables = self._house.tables
        return {
            "recharges": lambda: self._operator.recharges(choice),
            "levels changed": lambda: self._operator.changes_levels(choice),
            "tiers file changed": lambda: asyncio.to_thread(
                tables.change_tiers, 4 + round(choice * 10)
            ),
            "prices file changed": lambda: asyncio.to_thread(
                tables.change_prices, 10 + round(choice * 10)
            ),
            "files touched": lambda: asyncio.to_thread(tables.touch),
        }


def _of_servers(house: House) -> dict[str, _Fault]:
    redis, redis_way = house.redis, house.redis_way
    postgres, postgres_way = house.postgres, house.postgres_way

    # Whichever process of it runs at that moment.
    def pause() -> None:
        redis.running.pause()

    def resume() -> None:
        redis.running.resume()

    def kill() -> None:
        redis.running.kill()

    return {
        "redis paused": (pause, resume),
        "redis killed": (kill, redis.start),
        "redis cut": (redis_way.cut, _nothing),
        "redis unreachable": (redis_way.partition, redis_way.heal),
        "postgres cut": (postgres_way.cut, _nothing),
        "postgres unreachable": (postgres_way.partition, postgres_way.heal),
        "postgres restarted": (postgres.stop, postgres.start),
        # All of it at once: it recovers by its log.
        "postgres killed": (lambda: postgres.stop(signal.SIGQUIT), postgres.start),
    }


def _of_far_ends(house: House) -> dict[str, _Fault]:
    def flag(name: str) -> _Fault:
        return (
            lambda: setattr(house.far_end, name, True),
            lambda: setattr(house.far_end, name, False),
        )

    return {
        "sink down": flag("is_down"),
        "sink slow": flag("is_slow"),
        "sink forgetful": flag("is_forgetful"),
    }


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _nothing() -> None:
    """End what has ended by itself."""
