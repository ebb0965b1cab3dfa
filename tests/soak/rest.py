"""When nothing is asked any more: what is left open beyond what was there before."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from inf_middleware.ledgers import postgres_readers
from inf_middleware.stores import pipelines
from inf_middleware.tokens import counting
from tests.soak import opened
from tests.soak.house import House

_KINDS = ("tasks", "threads", "files")

# A worker that becomes the one that delivers loads an HTTP client: a thousand functions and tuples.
# What grows with the calls is seen by the tenth part of them.
_OBJECTS_MAX = 1_500
_CALLS_PER_OBJECT = 10
_KINDS_TOLD = 12

State = Mapping[str, Any]


def pools(house: House) -> dict[str, int]:
    """What may grow to a bound, by need, and stay: connections, threads, one file."""
    redis = f"server {house.redis_way.port}"
    postgres = f"server {house.postgres_way.port}"
    return {
        # As many as were ever under way at once, and those of renewals and probes.
        redis: pipelines.COMMANDS_IN_FLIGHT_MAX + 2,
        # Of these the ones that Redis has ended: its client's pool finds out when it takes them.
        opened.ENDED: pipelines.COMMANDS_IN_FLIGHT_MAX + 2,
        # A writer, the relay's, and readers.
        postgres: 2 + postgres_readers.READERS_MAX,
        # A spool's file is kept open once it was needed, and its thread.
        "file inf-ledger*.spool/*.jsonl": 1,
        "inf-middleware-spool_*": 1,
        "inf-middleware-count_*": counting.THREADS,
        # Names and addresses are looked up in uvloop's executor, or in asyncio's own: as many as
        # concurrent.futures.ThreadPoolExecutor has by default.
        "uvloop_*": min(32, (os.cpu_count() or 1) + 4),
        "asyncio_*": min(32, (os.cpu_count() or 1) + 4),
    }


def kinds_of(state: State) -> dict[str, Any]:
    """Return what a worker has open."""
    return {kind: state[kind] for kind in _KINDS}


def objects_max(calls: int) -> int:
    """By how many the objects of a kind may be more, in a worker that has served so many calls."""
    return _OBJECTS_MAX + calls // _CALLS_PER_OBJECT


def told(states: Iterable[State]) -> str:
    """Tell it in a line for each worker."""
    return "".join(
        f"\n  worker {state['pid']}: {state['rss'] / 2**20:.1f} MiB; "
        + "; ".join(
            f"{kind} " + ", ".join(f"{count} × {name}" for name, count in state[kind].items())
            for kind in _KINDS
        )
        for state in states
    )


class Start:
    """What workers have open after their first requests, each kind as in the one with most.

    One of them delivers to sinks, and another may be it at the end.
    """

    def __init__(self, states: Mapping[int, State], pools: Mapping[str, int]) -> None:
        self._objects = {pid: Counter(state["objects"]) for pid, state in states.items()}
        self._most: dict[str, Counter[str]] = {kind: Counter() for kind in _KINDS}
        for state in states.values():
            for kind in _KINDS:
                self._most[kind] |= Counter(state[kind])
        self._pools = pools

    def beyond(self, state: State) -> list[str]:
        """Say what a worker has open that was not there at the start."""
        found = []
        for kind in _KINDS:
            for name, count in state[kind].items():
                most = max(self._most[kind][name], self._pools.get(name, 0))
                if count > most:
                    found.append(f"{count} × {name} ({kind}), {most} at the start")
        return found

    def grown(self, state: State) -> Counter[str]:
        """Return of which objects a worker of the start has more, and by how many."""
        before = self._objects.get(state["pid"])
        grown = Counter(state["objects"]) - before if before else Counter[str]()
        return Counter(dict(grown.most_common(_KINDS_TOLD)))
