"""What happens when: all of it follows from the seed and the length of a run."""

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

Kinds: TypeAlias = dict[str, tuple[float, float]]

# To what may be away, and what comes back of it. Each with how long it may last, in seconds: from
# less than a deadline (a command of Redis has 0.25 s, one of PostgreSQL 5 s) to more than it.
HARD: Kinds = {
    "redis paused": (0.1, 6.0),
    "redis killed": (0.1, 6.0),
    "redis cut": (0.0, 0.0),
    "redis unreachable": (0.1, 6.0),
    "postgres cut": (0.0, 0.0),
    "postgres unreachable": (0.5, 8.0),
    "postgres restarted": (0.0, 4.0),
    "postgres killed": (0.0, 4.0),
    "worker killed": (0.0, 0.0),
    "worker paused": (0.5, 6.0),
}

# To the far ends, and what operators do: beside the others, at the same time.
SOFT: Kinds = {
    "sink down": (2.0, 10.0),
    "sink slow": (2.0, 10.0),
    "sink forgetful": (2.0, 10.0),
    "recharges": (0.0, 0.0),
    "levels changed": (0.0, 0.0),
    "tiers file changed": (0.0, 0.0),
    "prices file changed": (0.0, 0.0),
    "files touched": (0.0, 0.0),
}

# Between two faults of a kind of things: time to come back in, and sometimes too little.
_REST_S = (3.0, 9.0)


class Planned(NamedTuple):
    """One fault: when it begins, what it is, how long it lasts; `choice` is between 0 and 1."""

    at_s: float
    name: str
    lasts_s: float
    choice: float


def plan(seed: int, seconds: float) -> list[list[Planned]]:
    """Return what happens in two lanes beside each other, each fault before the next of its lane.

    All kinds of a lane happen, in any order, before one happens again.
    """
    return [
        _lane(random.Random(f"{seed}:{name}"), kinds, seconds)
        for name, kinds in (("hard", HARD), ("soft", SOFT))
    ]


def _lane(rng: random.Random, kinds: Kinds, seconds: float) -> list[Planned]:
    planned: list[Planned] = []
    at_s = 0.0
    bag: list[str] = []
    while True:
        bag = bag or _shuffled(rng, list(kinds))
        name = bag.pop()
        lasts_s = rng.uniform(*kinds[name])
        at_s += rng.uniform(*_REST_S)
        if at_s + lasts_s > seconds:
            return planned
        planned.append(Planned(at_s, name, lasts_s, rng.random()))
        at_s += lasts_s


def _shuffled(rng: random.Random, names: Sequence[str]) -> list[str]:
    return rng.sample(names, len(names))
