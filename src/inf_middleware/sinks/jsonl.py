"""A sink that appends events to a file, one JSON line each, and begins a new file in time."""

import asyncio
import contextlib
import fcntl
import itertools
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ports import TryLater

# A disk that takes longer stands still, and the process that ends does not.
_CLOSE_TIMEOUT_S = 5.0

# Longer than any event: how far back the beginning of a torn line is looked for.
_LINE_BYTES_MAX = 1024 * 1024

# Lines that are read back at a time: some milliseconds of a thread.
_RECALLED_MAX = 1_000

# In the names of files that were put aside: of one length, so that they sort by time.
_MOMENT = "%Y%m%dT%H%M%S.%fZ"


class JsonlSink:
    """Appends each event as one line of CloudEvents JSON, durably before it returns.

    A file that a batch would make larger than `bytes_max` is put aside before: `events.jsonl`
    becomes `events-20261124T120000.000000Z.jsonl`, complete and never touched again; a batch
    stays in one file. Of those put aside the `files_max` latest are kept (None: all).

    A line is whole when its newline is there. What a crash or a full disk left of one is cut off
    when its event comes again.

    Raises:
        ConfigError: A bound is no whole number of 1 or more.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        bytes_max: int | None = None,
        files_max: int | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        for name, value in (("bytes_max", bytes_max), ("files_max", files_max)):
            if value is not None and (type(value) is not int or value < 1):
                raise ConfigError(f"{name} is {value!r}; it must be a whole number of 1 or more")
        if files_max is not None and bytes_max is None:
            raise ConfigError("files_max needs bytes_max: without it no file is put aside")
        self.path = Path(path)
        self._bytes_max = bytes_max
        self._files_max = files_max
        self._now = now
        self._thread: threading.Thread | None = None
        self._appended: Future[None] | None = None
        self.forgets = files_max is not None

    @classmethod
    def from_uri(cls, uri: str) -> "JsonlSink":
        """Make a sink from "jsonl:PATH" or "jsonl:PATH?bytes_max=100000000&files_max=30".

        Raises:
            ConfigError: It is none.
        """
        path, _, query = uri.removeprefix("jsonl:").partition("?")
        bounds = dict(parse_qsl(query, keep_blank_values=True))
        unknown = bounds.keys() - {"bytes_max", "files_max"}
        if path == uri or not path or unknown or not all(map(str.isdecimal, bounds.values())):
            raise ConfigError(
                f'sink {uri!r} is not known; write "jsonl:PATH", or'
                ' "jsonl:PATH?bytes_max=100000000&files_max=30" for rotation'
            )
        bytes_max, files_max = (
            int(bounds[name]) if name in bounds else None for name in ("bytes_max", "files_max")
        )
        return cls(path, bytes_max=bytes_max, files_max=files_max)

    async def __call__(self, events: Sequence[BillingEvent]) -> None:
        """Append a batch with one write and one fsync, off the event loop."""
        if self._is_appending:
            # Of an offer that was given up: beside it the same would be appended once more.
            raise TryLater(f"{self.path}: what was begun is not on the disk yet", not_taken=True)
        lines = [event.encode() + b"\n" for event in events]
        appended: Future[None] = Future()
        self._appended = appended
        # A thread of its own: one that hangs is never given back, and others wait for no disk.
        self._thread = threading.Thread(
            target=self._append_and_tell,
            args=(lines, appended),
            name="inf-middleware-jsonl",
            daemon=True,
        )
        self._thread.start()
        await asyncio.wrap_future(appended)

    async def aclose(self) -> None:
        """Wait for what is being appended, unless its disk stands still: its events come again."""
        if self._is_appending and self._appended is not None:
            await asyncio.wait([asyncio.wrap_future(self._appended)], timeout=_CLOSE_TIMEOUT_S)

    @property
    def _is_appending(self) -> bool:
        thread, appended = self._thread, self._appended
        # After a fork it is a thread of the other process.
        return bool(thread and appended and thread.is_alive() and not appended.done())

    def _append_and_tell(self, lines: Sequence[bytes], appended: "Future[None]") -> None:
        appended.set_running_or_notify_cancel()  # who gives an offer up does not undo it
        try:
            self._append(lines)
        except BaseException as error:
            appended.set_exception(error)
        else:
            appended.set_result(None)

    async def recall(self) -> AsyncIterator[Sequence[bytes]]:
        """Yield the whole lines of all files, those that were put aside first, in their order."""
        lines = self._recalled()
        while page := await asyncio.to_thread(list, itertools.islice(lines, _RECALLED_MAX)):
            yield page

    def _recalled(self) -> Iterator[bytes]:
        try:
            # Before the others are listed: it may be put aside meanwhile.
            current = self.path.open("rb")
        except FileNotFoundError:
            return
        with current:
            for _, path in self._aside():
                try:
                    file = path.open("rb")
                except FileNotFoundError:  # the oldest has gone meanwhile
                    continue
                with file:
                    if not os.path.sameopenfile(file.fileno(), current.fileno()):
                        yield from _whole_lines(file)
            yield from _whole_lines(current)

    def _append(self, lines: Sequence[bytes]) -> None:
        while not self._append_to_one(lines):
            pass

    def _append_to_one(self, lines: Sequence[bytes]) -> bool:
        """Append to the file there is; False where it was full, and is put aside now."""
        # Opened for each batch: the file may be moved away by others at any time.
        with self._locked() as file:
            size = _without_torn_line(file, lines)
            length = sum(map(len, lines))
            if self._bytes_max is not None and size and size + length > self._bytes_max:
                self._put_aside()
                return False
            _write(file, b"".join(lines), size)
            os.fsync(file)
            if not size:
                self._sync_folder()  # or the file's very name may be gone after a power cut
            return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[int]:
        """Open the file, against a second writer, which a batch may otherwise be cut off for."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if self._is_current(file):
                    yield file
                    return
            finally:
                os.close(file)

    def _is_current(self, file: int) -> bool:
        # Whoever had the lock before may have put this very file aside.
        try:
            return os.path.samestat(os.fstat(file), self.path.stat())
        except FileNotFoundError:
            return False

    def _put_aside(self) -> None:
        path, moment = self.path, self._now().astimezone(UTC)
        earlier = self._aside()
        if earlier:
            # Whatever the clock does, the order of the names is that of the files.
            moment = max(moment, earlier[-1][0] + timedelta(microseconds=1))
        path.rename(path.with_name(f"{path.stem}-{moment:{_MOMENT}}{path.suffix}"))
        self._sync_folder()
        if self._files_max is not None:
            for _, other in earlier[: max(0, len(earlier) + 1 - self._files_max)]:
                other.unlink()

    def _aside(self) -> list[tuple[datetime, Path]]:
        """Return the files that were put aside, each with its moment, the oldest first."""
        return sorted(
            (then, other)
            for other in self.path.parent.iterdir()
            if other.suffix == self.path.suffix and (then := self._moment_of(other)) is not None
        )

    def _moment_of(self, other: Path) -> datetime | None:
        """Return when a file was put aside; None where it is none of ours."""
        head, _, moment = other.stem.rpartition("-")
        if head != self.path.stem:
            return None
        try:
            return datetime.strptime(moment, _MOMENT).replace(tzinfo=UTC)
        except ValueError:
            return None

    def _sync_folder(self) -> None:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    return (line[:-1] for line in file if line.endswith(b"\n"))


def _without_torn_line(file: int, lines: Sequence[bytes]) -> int:
    """Cut off the beginning of a line that is about to come whole; return the file's size."""
    size = os.fstat(file).st_size
    if not size or os.pread(file, 1, size - 1) == b"\n":
        return size
    start = max(0, size - _LINE_BYTES_MAX)
    torn = os.pread(file, size - start, start).rpartition(b"\n")[2]
    if any(line.startswith(torn) for line in lines):
        os.ftruncate(file, size - len(torn))
        return size - len(torn)
    # Not ours, or of a batch that others have taken: left as it is, and ended.
    return size + os.write(file, b"\n")


def _write(file: int, data: bytes, size: int) -> None:
    written = 0
    try:
        while written < len(data):
            written += os.write(file, data[written:])
    except OSError:
        os.ftruncate(file, size)  # readers shall not find half a line, nor a batch twice
        raise
