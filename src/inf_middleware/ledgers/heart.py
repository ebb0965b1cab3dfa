"""The heartbeat of a process that holds money."""

import os
import time
import uuid
from abc import ABC, abstractmethod
from pathlib import Path

from inf_middleware.domain.moments import rfc3339
from inf_middleware.ledgers import holds
from inf_middleware.ledgers.pulse import lasting_ms
from inf_middleware.ledgers.steps import Steps

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Heart(ABC):
    """Names this process, and beats for it once it has held anything.

    `boot` begins the names of all processes on one clock; another's are gone.
    """

    boot = ""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}  # by pid: a fork's child is another
        # When a beat failed, until one is durable.
        self._missed_ms: int | None = None

    @abstractmethod
    def now_ms(self) -> int:
        """Return the time of the clock that all processes of a ledger share."""

    def owner(self) -> str:
        """Return who holds here: a process, not its parent before a fork."""
        pid = os.getpid()
        if pid not in self._owners:
            # One step: of threads the first names it, or what another holds would have no beat.
            self._owners.setdefault(pid, f"{self.boot}:{pid}:{uuid.uuid4().hex}")
        return self._owners[pid]

    def beat(self) -> Steps[int]:
        """Say that this process lives, and end what others left.

        Who is silent is gone only where all have had a whole lease in which to be heard: none of
        them is while the ledger is away, or while the host stands still.
        """
        owner = self._owners.get(os.getpid())
        now_ms, now_ns = self.now_ms(), time.time_ns()  # those of its run, once others have written
        gap_ms, lease_ms = holds.GAP_BEATS * holds.BEAT_S * 1000, holds.LEASE_S * 1000
        lasting = yield from lasting_ms(self.boot, now_ms, round(gap_ms), self._missed_ms)
        judges = lasting >= lease_ms
        return (
            yield from holds.beat(owner, self.boot, now_ms, now_ns, rfc3339(now_ns), judges=judges)
        )

    def beaten(self) -> None:
        """Note that a beat is durable."""
        self._missed_ms = None

    def missed(self) -> None:
        """Note that a beat failed."""
        self._missed_ms = self.now_ms()


class HostHeart(Heart):
    """On the monotonic clock of a host, which is one for all its processes.

    It begins anew with each boot. The wall clock may jump, and nobody is taken for dead by that.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            self.boot = _BOOT_ID.read_text("ascii").strip()
        except OSError:  # a system that does not tell: its processes die by their beats alone
            self.boot = ""

    def now_ms(self) -> int:
        """Return the host's monotonic time."""
        return round(time.monotonic() * 1000)


class ServerHeart(Heart):
    """On the clock of a database server, as it was asked last and this host has counted since."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead_ms = 0

    def set(self, server_ms: int) -> None:
        """Take the server's time as of now."""
        self._ahead_ms = server_ms - round(time.monotonic() * 1000)

    def now_ms(self) -> int:
        """Return the server's time."""
        return round(time.monotonic() * 1000) + self._ahead_ms
