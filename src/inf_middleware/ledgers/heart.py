"""The heartbeat of a process that holds money, on the clock of its host."""

import os
import time
import uuid
from pathlib import Path

from inf_middleware.domain.moments import rfc3339
from inf_middleware.ledgers import holds
from inf_middleware.ledgers.steps import Steps

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Heart:
    """Names this process, and beats for it once it has held anything.

    The monotonic clock of a host is one for all its processes, and begins anew with each boot: the
    wall clock may jump, and nobody is taken for dead by that.
    """

    def __init__(self) -> None:
        self._owner: str | None = None
        self._pid = 0

    def owner(self) -> str:
        """Return who holds here: a process, not its parent before a fork."""
        if self._owner is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._owner = f"{_boot_id()}:{self._pid}:{uuid.uuid4().hex}"
        return self._owner

    def now_ms(self) -> int:
        """Return the host's monotonic time."""
        return round(time.monotonic() * 1000)

    def beat(self) -> Steps[int]:
        """Say that this process lives, and end what others left."""
        owner = self._owner if self._pid == os.getpid() else None
        now_ns = time.time_ns()
        return holds.beat(owner, _boot_id(), self.now_ms(), now_ns, rfc3339(now_ns))


def _boot_id() -> str:
    try:
        return _BOOT_ID.read_text("ascii").strip()
    except OSError:  # a system that does not tell: its processes die by their beats alone
        return ""
