"""Bills that a ledger could not take in time: kept on this host, durably, and handed over later.

Each process has a file of its own in the spool's directory, one event a line, and holds its lock;
a file whose process is gone is handed over by any other. Handing over twice does no harm: the
ledger takes an event once, by its id.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from inf_middleware.background import Background
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.handing_over import HandingOver, Patience, Undecided
from inf_middleware.ledgers.spool_file import SpoolFile, is_orphan, read, size_of, write
from inf_middleware.ports import Ledger

_log = logging.getLogger("inf_middleware.ledgers")

# Of one process: about 300,000 bills, five minutes at 1,000 a second. What is beyond is refused.
SPOOL_BYTES_MAX = 256 * 1024 * 1024

# How often a ledger that is away is tried, and files of processes that are gone are looked for.
REPLAY_S = 1.0


class _Waiting(NamedTuple):
    line: bytes
    durable: "concurrent.futures.Future[None]"


class SpoolingLedger:
    """A ledger whose bills are kept in `directory` while it is away.

    Once something is kept, all goes there until the ledger has taken it: nobody waits for a ledger
    that is known to be away.
    """

    def __init__(
        self,
        ledger: Ledger,
        directory: Path,
        *,
        bytes_max: int = SPOOL_BYTES_MAX,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger = ledger
        self._directory = directory
        self._bytes_max = bytes_max
        self._active = False
        self._replaying = False
        self._waiting: deque[_Waiting] = deque()
        self._lock = threading.Lock()
        self._pool: concurrent.futures.ThreadPoolExecutor | None = None
        self._pid = 0
        self._handing_over = Background()
        self._hand = HandingOver(ledger)
        self._patience = Patience(clock)
        self._own = SpoolFile(directory, bytes_max)  # the thread's own

    @property
    def is_active(self) -> bool:
        """Whether all is kept, as the ledger is known to be away."""
        return self._active

    @property
    def kept_bytes(self) -> int:
        """What this process keeps for a ledger that is away."""
        return self._own.size if self._active else 0

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Hand over a settlement: to the ledger, or to the spool where that is in use."""
        if not self._handing_over.is_running:
            self._start()
        if self._active:
            return self.keep(event)
        self._hand.offered = event
        return self.ledger.settle(event)

    async def keep(self, event: BillingEvent) -> None:
        """Keep a settlement durably on this host; the ledger gets it as soon as it is back.

        Raises:
            LedgerUnavailable: It cannot be kept: the disk or the spool is full.
        """
        waiting = _Waiting(event.encode() + b"\n", concurrent.futures.Future())
        self._waiting.append(waiting)
        self._executor().submit(self._flush)
        if not self._handing_over.is_running:  # now: who waits may be cancelled, its bill stays
            self._start()
        await asyncio.wrap_future(waiting.durable)

    async def start(self) -> None:
        """Begin to hand over what an earlier run left."""
        self._start()

    async def aclose(self) -> None:
        """Stop, and close the ledger."""
        await self.stop()
        await self.ledger.aclose()

    async def stop(self) -> None:
        """Hand over what the ledger takes now, and end; what is left waits for the next run.

        The ledger stays open, for others may use it.
        """
        ending, self._handing_over = self._handing_over, Background()
        await ending.end()
        task = ending.task
        if task is not None and task.get_loop().is_running():  # of another thread
            task.get_loop().call_soon_threadsafe(task.cancel)
        self._patience.only([])
        if self._active:
            with contextlib.suppress(LedgerUnavailable, OSError):  # it is closed all the same
                await self._replay()
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None and self._pid == os.getpid():
            await asyncio.get_running_loop().run_in_executor(pool, self._own.close)
            pool.shutdown()

    def _start(self) -> None:
        if not self._handing_over.is_running:
            self._handing_over.start(self._run, "inf-middleware-spool")

    def _executor(self) -> concurrent.futures.ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pid != os.getpid():  # threads do not survive a fork
                if self._pid != os.getpid():
                    self._own = SpoolFile(self._directory, self._bytes_max)
                    self._replaying = False
                self._pid = os.getpid()
                self._pool = concurrent.futures.ThreadPoolExecutor(
                    1, thread_name_prefix="inf-middleware-spool"
                )
            return self._pool

    async def _run(self) -> None:
        failing = False
        while True:
            try:
                await self._replay()
            except (LedgerUnavailable, OSError) as error:
                if not failing:
                    _log.warning("kept bills cannot be handed over yet: %s", error)
                failing = True
            else:
                if failing:
                    _log.warning("kept bills can be handed over again")
                failing = False
            await asyncio.sleep(REPLAY_S)

    async def _replay(self) -> None:
        """Hand over all that is kept, this process' own file last.

        Raises:
            LedgerUnavailable: The ledger is still away.
        """
        pool = self._executor()
        with self._lock:
            if self._replaying:  # two at once would forget what neither has handed over
                return
            self._replaying = True
        try:
            await self._replay_files(pool)
        finally:
            self._replaying = False

    async def _replay_files(self, pool: concurrent.futures.ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        undecided: Undecided | None = None
        files = await loop.run_in_executor(pool, self._files)
        self._patience.only(files)
        for path, size in files.items():
            try:
                self._patience.check(path, size)
            except Undecided as error:
                undecided = error
                continue
            try:
                await self._replay_file(pool, path, size)
            except Undecided as error:  # those of the other files are not to wait for it
                self._patience.undecided(path, size, str(error))
                undecided = error
        if undecided is not None:
            raise undecided

    async def _replay_file(
        self, pool: concurrent.futures.ThreadPoolExecutor, path: Path, size: int
    ) -> None:
        loop = asyncio.get_running_loop()
        end, taken = 0, 0
        refused: list[bytes] = []
        while end < size:  # what was added since waits for the next time
            end, lines = await loop.run_in_executor(pool, read, path, end)
            if not lines:
                break
            refused_now = await self._hand.hand_over(lines)
            refused += refused_now
            taken += len(lines) - len(refused_now)
        # Both at once: who is cancelled between the two would set the same aside once more.
        await loop.run_in_executor(pool, self._done, path, end, refused)
        if taken:
            _log.warning("%d kept bills are handed over to the ledger", taken)

    def _files(self) -> dict[Path, int]:
        """Return the files to hand over, with their sizes: those that nobody owns, and ours."""
        files = sorted(self._directory.glob("*.jsonl"))
        own = self._own.path
        found = {path: size_of(path) for path in files if path != own and is_orphan(path)}
        if own is not None and self._own.size:
            found[own] = self._own.size
        return found

    def _flush(self) -> None:
        lines: list[bytes] = []
        told: list[concurrent.futures.Future[None]] = []
        while self._waiting:
            line, durable = self._waiting.popleft()
            lines.append(line)  # of one whose waiter was cancelled, too: its call is billed
            if durable.set_running_or_notify_cancel():  # from here on it cannot be cancelled
                told.append(durable)
        if not lines:
            return
        try:
            self._append(b"".join(lines))
        except Exception as error:  # whatever it is: those who wait are told
            for durable in told:
                durable.set_exception(
                    LedgerUnavailable(f"the spool {self._directory} failed: {error}")
                )
        else:
            for durable in told:
                durable.set_result(None)

    def _append(self, lines: bytes) -> None:
        self._own.append(lines)
        if not self._active:
            self._active = True
            _log.error("the ledger is away: bills are kept in %s until it is back", self._directory)

    def _done(self, path: Path, end: int, refused: list[bytes]) -> None:
        if refused:
            self._set_aside(refused)
        self._forget(path, end)

    def _set_aside(self, lines: list[bytes]) -> None:
        path = self._directory / "refused"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            write(file, b"".join(line + b"\n" for line in lines))
        finally:
            os.close(file)
        _log.error("%d kept bills are not taken by the ledger: see %s", len(lines), path)

    def _forget(self, path: Path, end: int) -> None:
        """Drop what was handed over of a file: all up to `end`."""
        if path != self._own.path:
            path.unlink(missing_ok=True)  # by another process, perhaps, at the same moment
            return
        self._own.drop(end)
        if not self._own.size:
            self._active = False
