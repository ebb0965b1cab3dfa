"""The heartbeat of a process that holds money."""

import os
import time
import uuid
from abc import ABC, abstractmethod
from pathlib import Path

from inf_middleware.domain.moments import rfc3339
from inf_middleware.ledgers import holds
from inf_middleware.ledgers.steps import Steps

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Heart(ABC):
    """Names this process, and beats for it once it has held anything.

    `boot` begins the names of all processes on one clock; another's are gone.
    """

    boot = ""

    def __init__(self) -> None:
        self._owner: str | None = None
        self._pid = 0
        # Beats have been durable since then without a gap, and the last one then.
        self._since_ms: int | None = None
        self._beaten_ms = 0

    @abstractmethod
    def now_ms(self) -> int:
        """Return the time of the clock that all processes of a ledger share."""

    def owner(self) -> str:
        """Return who holds here: a process, not its parent before a fork."""
        if self._owner is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._owner = f"{self.boot}:{self._pid}:{uuid.uuid4().hex}"
        return self._owner

    def beat(self) -> Steps[int]:
        """Say that this process lives, and end what others left.

        Who is silent is gone only where all have had a whole lease in which to be heard: none of
        them is while the ledger is away, or while the host stands still.
        """
        owner = self._owner if self._pid == os.getpid() else None
        now_ms, now_ns = self.now_ms(), time.time_ns()
        since_ms = self._since_ms if self._is_next(now_ms) else None
        judges = since_ms is not None and now_ms - since_ms >= holds.LEASE_S * 1000
        return holds.beat(owner, self.boot, now_ms, now_ns, rfc3339(now_ns), judges=judges)

    def beaten(self) -> None:
        """Note that a beat is durable."""
        now_ms = self.now_ms()
        if self._since_ms is None or not self._is_next(now_ms):
            self._since_ms = now_ms
        self._beaten_ms = now_ms

    def missed(self) -> None:
        """Note that a beat failed."""
        self._since_ms = None

    def _is_next(self, now_ms: int) -> bool:
        """Tell whether a beat follows the last one without a gap, a jump of the clock included."""
        return 0 <= now_ms - self._beaten_ms <= holds.GAP_BEATS * holds.BEAT_S * 1000


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
