"""Who delivers to a sink of a ledger's file: a lock that ends with its process, however it ends."""

import fcntl
import hashlib
import os
import weakref
from pathlib import Path

from inf_middleware.ledgers.filesystem import is_at


class RelayLock:
    """An advisory lock on a file beside the ledger.

    It is not bound to a connection: who has it keeps it where an I/O error closes the ledger.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        _locks.add(self)

    @classmethod
    def of(cls, ledger: Path, sink: str) -> "RelayLock":
        """Return that of a sink, whose name may be none of a file."""
        digest = hashlib.sha256(sink.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        return cls(Path(f"{ledger}.relay-{digest}"))

    @property
    def held(self) -> bool:
        """Whether this process has the lock: of the file that others would lock."""
        return self._file is not None and is_at(self._path, self._file)

    def take(self) -> bool:
        """Take the lock, or keep it; False while another process has it.

        Raises:
            OSError: The file cannot be made.
        """
        if self.held:
            return True
        self.release()
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return False
        except OSError:
            os.close(file)
            raise
        self._file = file
        return True

    def release(self) -> None:
        """Let another process have it."""
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)


_locks: "weakref.WeakSet[RelayLock]" = weakref.WeakSet()


def _release_in_child() -> None:
    # A child made by fork holds its parent's lock too, and would keep it when the parent is dead.
    for lock in list(_locks):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
