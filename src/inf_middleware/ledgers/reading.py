"""The reader thread of an SQLite ledger: look-ups and reports, beside the writer."""

import asyncio
import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import apsw

from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.connection import FATAL, check_name, connect, connect_to_read
from inf_middleware.ledgers.forking import Forking
from inf_middleware.ledgers.sqlite_steps import read
from inf_middleware.ledgers.steps import T, Work


class Reader(Forking):
    """One thread with one connection that only reads; started at first use."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._pid = 0
        self._db: apsw.Connection | None = None  # the thread's own, but for a fork

    async def run(self, work: Work[T]) -> T:
        """Run steps that only read, as of one moment.

        Raises:
            LedgerUnavailable: The file cannot be read.
        """
        loop = asyncio.get_running_loop()
        result: T = await loop.run_in_executor(self._executor(), self._read, work)
        return result

    async def aclose(self) -> None:
        """Close; the next use opens anew."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is None or self._pid != os.getpid():
            return
        await asyncio.get_running_loop().run_in_executor(pool, self._close)
        pool.shutdown()

    def begin_anew(self) -> None:
        """Make the lock anew, which another thread of the parent may have held."""
        super().begin_anew()
        self._lock = threading.Lock()

    def _executor(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None or self._pid != os.getpid():  # threads do not survive a fork
                if self._pid != os.getpid():
                    self._db = None
                self._pid = os.getpid()
                name = f"inf-middleware-reader-{self._path.name}"
                self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
            return self._pool

    def _read(self, work: Work[Any]) -> Any:
        with self.using:
            try:
                if self._db is None:
                    self._db = _open(self._path)
                else:
                    check_name(self._db, self._path)
                return read(self._db, work)
            except apsw.Error as error:
                if isinstance(error, FATAL):
                    self.let_go()
                raise LedgerUnavailable(
                    f"the ledger {self._path} cannot be read: {error}"
                ) from error

    def _close(self) -> None:
        with self.using:
            self.let_go()

    def let_go(self) -> None:
        """Close the file."""
        if self._db is not None:
            db, self._db = self._db, None
            with contextlib.suppress(apsw.Error):
                db.close()


def _open(path: Path) -> apsw.Connection:
    try:
        return connect_to_read(path)
    except LedgerUnavailable:
        connect(path).close()  # made, or brought to this version, where it can be
        return connect_to_read(path)
