"""Failed keys per network: who guesses is slowed down, and nobody else."""

import threading
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable

# A person who pastes wrong keys, or a fleet behind one address with an expired one, stays below; at
# this pace a random key of 128 bits is not found in the age of the universe.
FAILED_KEYS_PER_MINUTE = 20

WINDOW_S = 60.0

# Some 5 MB at most: an entry has up to 20 moments of 8 bytes and its name. Beyond it the network
# whose last failure is longest ago is forgotten.
NETWORKS_MAX = 16_384


class FailedKeys:
    """Counts failed keys per network in a rolling minute, in this process."""

    def __init__(
        self,
        per_minute: int = FAILED_KEYS_PER_MINUTE,
        *,
        networks_max: int = NETWORKS_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.per_minute = per_minute
        self._networks_max = networks_max
        self._clock = clock
        self._lock = threading.Lock()  # event loops of several threads may share it
        # Ordered by the latest counted failure, the oldest first.
        self._failures: OrderedDict[str, array[float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._failures)

    def count(self, network: str) -> float | None:
        """Count a failure; once the minute has had its number, count nothing, return the wait.

        The wait is the exact time in seconds until a failure of this network would be counted.
        """
        with self._lock:
            return self._count(network, self._clock())

    def _count(self, network: str, now: float) -> float | None:
        self._forget(now)
        failures = self._failures.get(network)
        if failures is None:
            self._failures[network] = array("d", (now,))
            if len(self._failures) > self._networks_max:
                self._failures.popitem(last=False)
            return None
        while failures and failures[0] + WINDOW_S <= now:
            failures.pop(0)
        if len(failures) >= self.per_minute:
            return failures[0] + WINDOW_S - now
        failures.append(now)
        self._failures.move_to_end(network)
        return None

    def _forget(self, now: float) -> None:
        """Drop networks whose failures have all left the window: two a call, so it never piles."""
        for _ in range(2):
            if not self._failures:
                return
            network, failures = next(iter(self._failures.items()))
            if failures[-1] + WINDOW_S > now:
                return
            del self._failures[network]
