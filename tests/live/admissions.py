"""What the logs of admissions prove: the most in any window, the most at once, the share used."""

import heapq
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Served:
    """One admitted request; `ended` is infinite where nobody knows.

    It was admitted at some moment between `arrived` and `entered`, and held its slot at least from
    `entered` to `ended`.
    """

    key: str
    tokens: int
    arrived: float
    entered: float
    ended: float


Weight = Callable[[Served], int]


def one(_: Served) -> int:
    return 1


def tokens(served: Served) -> int:
    return served.tokens


def read_logs(folder: Path, killed: Mapping[int, float] | None = None) -> list[Served]:
    """All that was admitted, from the logs of all processes.

    What a process left undone ended when it was `killed` (moments by process id).
    """
    found = []
    for path in folder.glob("*.log"):
        end_of_process = (killed or {}).get(int(path.stem), math.inf)
        # Only whole lines: the last one of a killed process may be cut.
        lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        ends = {number: moment for kind, number, moment, *_ in lines if kind == "end"}
        for kind, number, *rest in lines:
            if kind == "begin":
                found.append(Served(*rest, ends.get(number, end_of_process)))
    return found


def most_in_window(served: Iterable[Served], window_s: float, weight: Weight) -> int:
    """The most that was certainly admitted within one window.

    Of a set of requests it is certain that all were admitted within a window where even from the
    first arrival to the last entry it took less. So an answer above the limit is proof, whatever
    the delays between a store and the log.
    """
    inside: list[tuple[float, int]] = []  # arrivals, earliest first, and what came with them
    total = most = 0
    for call in sorted(served, key=lambda call: call.entered):
        heapq.heappush(inside, (call.arrived, weight(call)))
        total += weight(call)
        while inside and inside[0][0] <= call.entered - window_s:
            total -= heapq.heappop(inside)[1]
        most = max(most, total)
    return most


def most_at_once(served: Iterable[Served]) -> int:
    """The most that were certainly in progress at one moment."""
    # At one moment ends come before beginnings: that slot was free.
    steps = sorted(
        step
        for call in served
        for step in ((call.entered, 1), (call.ended, -1))
        if step[0] < math.inf
    )
    now = most = 0
    for _, step in steps:
        now += step
        most = max(most, now)
    return most


def in_window_on_average(
    served: Iterable[Served], window_s: float, weight: Weight, begin: float, end: float
) -> float:
    """How much was in the rolling window on average over a time."""
    area = sum(
        weight(call) * _overlap(call.entered, call.entered + window_s, begin, end)
        for call in served
    )
    return area / (end - begin)


def at_once_on_average(served: Iterable[Served], begin: float, end: float) -> float:
    """How many were in progress on average over a time."""
    area = sum(_overlap(call.entered, call.ended, begin, end) for call in served)
    return area / (end - begin)


def _overlap(begin: float, end: float, other_begin: float, other_end: float) -> float:
    return max(min(end, other_end) - max(begin, other_begin), 0.0)
