"""The files of a spool: this process' own, and those of processes that are gone."""

import contextlib
import fcntl
import logging
import os
import weakref
from pathlib import Path

from inf_middleware.domain.ids import uuid7
from inf_middleware.ledgers.filesystem import is_at

_log = logging.getLogger("inf_middleware.ledgers")

# Read at a time: some 500 bills, which are one commit of the ledger. A spool may have a quarter of
# a gigabyte, and is looked at once a second.
PIECE_BYTES = 512 * 1024


class SpoolFile:
    """This process' file in a spool's directory: locked, and of one thread.

    `path` is None until it is there; `size` is that of its whole lines.
    """

    def __init__(self, directory: Path, bytes_max: int) -> None:
        self.path: Path | None = None
        self.size = 0
        self._directory = directory
        self._bytes_max = bytes_max
        self._file: int | None = None
        self._is_named = False  # durably
        _own.add(self)

    def append(self, lines: bytes) -> None:
        """Write lines, durably; all of them or none.

        Raises:
            OSError: The disk or the spool is full.
        """
        if self.size + len(lines) > self._bytes_max:
            raise OSError(f"it is full: {self._bytes_max:,} bytes")
        file = self._opened()
        try:
            write(file, lines)
        except Exception:
            os.ftruncate(file, self.size)  # nothing half-written stays
            raise
        self.size += len(lines)

    def drop(self, end: int) -> None:
        """Drop what was handed over: all up to `end`."""
        assert self._file is not None
        assert self.path is not None
        if self.size == end:
            os.ftruncate(self._file, 0)
            self.size = 0
            os.fsync(self._file)
            return
        # Never in place: what is not handed over is durable at every moment.
        self._begin(self.path, self._kept(end))
        self._name()

    def close(self) -> None:
        """Close it; it is removed where it is empty."""
        if self._file is not None and self.path is not None and not self.size:
            self.path.unlink(missing_ok=True)
        self.let_go()

    def let_go(self) -> None:
        """Close it, and leave it to others."""
        if self._file is not None:
            file, self._file, self.path, self.size = self._file, None, None, 0
            os.close(file)

    def _opened(self) -> int:
        if self._file is None or self.path is None:
            self._begin(self._directory / f"{uuid7(0)}.jsonl", b"")
        elif not is_at(self.path, self._file):
            _log.error("%s was deleted while it was in use: it is written anew", self.path)
            self._begin(self.path, self._kept(0))
        self._name()
        assert self._file is not None
        return self._file

    def _kept(self, start: int) -> bytes:
        """Return what is kept from a place on, also where the file has its name no more."""
        assert self._file is not None
        return os.pread(self._file, self.size - start, start)

    def _begin(self, path: Path, lines: bytes) -> None:
        """Go on in a new file, in the place of the one that is there."""
        self._directory.mkdir(mode=0o700, exist_ok=True)
        partial = path.with_suffix(".partial")
        # Locked before it has its name: nobody shall take it for one without an owner.
        fresh = _open_locked(partial)
        try:
            if lines:
                write(fresh, lines)
            partial.replace(path)
        except BaseException:  # nothing of it stays: least of all its lock
            with contextlib.suppress(OSError):
                partial.unlink()
            os.close(fresh)
            raise
        # At once: whatever fails from here on, what is kept goes where the name is.
        before, self._file = self._file, fresh
        self.path, self.size, self._is_named = path, len(lines), False
        if before is not None:
            os.close(before)

    def _name(self) -> None:
        """Make the file's name durable: no line in it is before."""
        if not self._is_named:
            _sync_directory(self._directory)
            self._is_named = True


_own: "weakref.WeakSet[SpoolFile]" = weakref.WeakSet()


def _let_go_in_child() -> None:
    # A child made by fork holds its parent's lock too, and would keep it when the parent is dead.
    for own in list(_own):
        own.let_go()


os.register_at_fork(after_in_child=_let_go_in_child)


def read(path: Path, start: int) -> tuple[int, list[bytes]]:
    """Return the next whole lines of a file from a place on, and where they end.

    A line without its end was never acknowledged: the process was killed within it.
    """
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(PIECE_BYTES)
            if b"\n" not in data:
                data += file.readline()
    except FileNotFoundError:  # another process was faster
        return start, []
    end = data.rfind(b"\n") + 1
    return start + end, data[:end].splitlines()


def size_of(path: Path) -> int:
    """Return the size of a file; 0 where it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process was faster
        return 0


def is_orphan(path: Path) -> bool:
    """Tell whether the process of a file is gone."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True


def write(file: int, data: bytes) -> None:
    """Write all of it, durably."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
    os.fsync(file)


def _open_locked(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
    file = os.open(path, flags, 0o600)
    try:
        # Without waiting: nobody else knows its name, and who waited would hold up every bill.
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise OSError(f"{path} is locked by another process") from error
    except BaseException:
        os.close(file)
        raise
    return file


def _sync_directory(directory: Path) -> None:
    file = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
