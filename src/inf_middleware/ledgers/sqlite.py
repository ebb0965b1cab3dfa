"""The ledger in an SQLite file: one writer thread per process, group commit, strict durability.

All workers of a host share the file.
"""

import fcntl
import os
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

import apsw

from inf_middleware.domain.errors import ConfigError, LedgerUnavailable
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.tiers import Account
from inf_middleware.ledgers.connection import SCHEMA_VERSION, connect_to_read, version_of
from inf_middleware.ledgers.looking import account_of_key, accounts_version
from inf_middleware.ledgers.reading import Reader
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.settling import writing_nothing
from inf_middleware.ledgers.steps import T, Work
from inf_middleware.ledgers.writer import Writer


class SqliteLedger:
    """Keeps records, postings and events in one file, and is its own outbox.

    Nothing is opened before the first use. `commits` counts the transactions of this process.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.spool_directory = Path(f"{path}.spool")
        self._relay_lock: int | None = None  # a file descriptor, the writer thread's own
        self._relay_pid = 0  # a lock is not inherited by a fork
        self._writer = Writer(self.path, self._unlock_relay)
        self._reader = Reader(self.path)

    @classmethod
    def from_uri(cls, uri: str) -> "SqliteLedger":
        """Make a ledger from "sqlite:///relative.db" or "sqlite:////absolute.db".

        Raises:
            ConfigError: It is neither.
        """
        path = uri.removeprefix("sqlite:///")
        if path == uri or not path or path == ":memory:" or path.endswith("/"):
            raise ConfigError(
                f'ledger is {uri!r}; write "sqlite:///inf-ledger.db" for a file in the working'
                ' directory, or "sqlite:////var/lib/inf-ledger.db"'
            )
        return cls(path)

    @property
    def commits(self) -> int:
        """How many transactions this process has committed."""
        return self._writer.commits

    @property
    def generation(self) -> int:
        """Grows with each commit of this process."""
        return self._writer.generation

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Hand over a settlement at once; the awaitable ends when it is durable.

        Raises:
            LedgerUnavailable: From the awaitable; nothing was recorded.
        """
        try:
            rows = rows_of(event)
        except (ValueError, TypeError, OverflowError) as error:
            return _failing(LedgerUnavailable(f"{event.id} cannot be recorded: {error}"))
        return self._writer.submit(rows)

    def transact(self, work: Work[T]) -> Awaitable[T]:
        """Hand over work at once; the awaitable ends with its result, when that is durable.

        Raises:
            LedgerUnavailable: From the awaitable; nothing was recorded.
        """
        return self._writer.submit(work)

    async def read(self, work: Work[T]) -> T:
        """Run steps that only read.

        Raises:
            LedgerUnavailable: The file cannot be read.
        """
        return await self._reader.run(work)

    async def probe(self) -> None:
        """See that something can be made durable.

        Raises:
            LedgerUnavailable: It cannot.
        """
        await self.transact(writing_nothing)

    def check(self) -> None:
        """See that the ledger is there, and of this version; nothing is made or changed.

        Raises:
            LedgerUnavailable: It is not.
        """
        connect_to_read(self.path).close()

    async def migrate(self) -> tuple[int, int]:
        """Bring a ledger that is there to this version; return its version before and now.

        Raises:
            LedgerUnavailable: It is not there, is no ledger, or a newer one.
        """
        before = version_of(self.path)
        await self.read(accounts_version)
        return before, SCHEMA_VERSION

    async def accounts_version(self) -> int:
        """Return the number that grows with every change of accounts, keys and recharges."""
        return await self.read(accounts_version)

    async def account_of_key(self, sha256: str, currency: str) -> tuple[int, Account | None]:
        """Return the account of a key that is in force, and the version it is of."""
        return await self.read(lambda: account_of_key(sha256, currency))

    async def elect(self) -> bool:
        """Become, or stay, the one relay of this file; False while another process is it."""
        return bool(await self._writer.run_job(self._try_relay_lock))

    async def pending(self, sink: str, count_max: int) -> Sequence[tuple[int, BillingEvent]]:
        """Return the next events after a sink's cursor; a new sink begins with the oldest."""

        def read(db: apsw.Connection) -> Any:
            return db.execute(
                "SELECT seq, body FROM outbox WHERE seq >"
                " coalesce((SELECT seq FROM sink_cursor WHERE sink = ?), 0)"
                " ORDER BY seq LIMIT ?",
                (sink, count_max),
            ).fetchall()

        found = await self._writer.run_job(read)
        return [(seq, BillingEvent.decode(body)) for seq, body in found]

    async def advance(self, sink: str, place: int, rejected: Mapping[str, str]) -> None:
        """Move a sink's cursor, durably; `rejected` events go to the dead letters."""

        def move(db: apsw.Connection) -> None:
            with db:
                db.executemany(
                    "INSERT INTO dead_letter (sink, id, reason) VALUES (?, ?, ?)"
                    " ON CONFLICT (sink, id) DO NOTHING",
                    [(sink, event_id, reason) for event_id, reason in rejected.items()],
                )
                db.execute(
                    "INSERT INTO sink_cursor (sink, seq) VALUES (?, ?)"
                    " ON CONFLICT (sink) DO UPDATE SET seq = max(seq, excluded.seq)",
                    (sink, place),
                )

        await self._writer.run_job(move)

    async def wait(self, generation: int, timeout_s: float) -> None:
        """Return when this process has committed since `generation`, or after `timeout_s`."""
        await self._writer.wait(generation, timeout_s)

    async def aclose(self) -> None:
        """Finish what was handed over, and close; the next use opens anew."""
        await self._reader.aclose()
        await self._writer.aclose()

    def _unlock_relay(self) -> None:
        if self._relay_lock is not None:
            os.close(self._relay_lock)
            self._relay_lock = None

    def _try_relay_lock(self, db: apsw.Connection) -> bool:
        if self._relay_lock is not None and self._relay_pid == os.getpid():
            return True
        lock = os.open(f"{self.path}.relay", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        self._relay_lock, self._relay_pid = lock, os.getpid()
        return True


async def _failing(failure: LedgerUnavailable) -> None:
    raise failure
