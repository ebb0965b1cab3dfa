"""The ledger in an SQLite file: one writer thread per process, group commit, strict durability.

All workers of a host share the file.
"""

import asyncio
from collections.abc import Awaitable
from pathlib import Path

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.uris import masked
from inf_middleware.ledgers import holds
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.connection import SCHEMA_VERSION, connect_to_read, version_of
from inf_middleware.ledgers.election import RelayLock
from inf_middleware.ledgers.heart import HostHeart
from inf_middleware.ledgers.looking import accounts_version
from inf_middleware.ledgers.reading import Reader
from inf_middleware.ledgers.steps import T, Work
from inf_middleware.ledgers.writer import Writer


class SqliteLedger(LedgerBase):
    """A ledger in one file. Nothing is opened before the first use."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()  # the same file, wherever the process goes
        self.spool_directory = Path(f"{self.path}.spool")
        self._elected: dict[str, RelayLock] = {}  # by sinks, also those that others deliver to
        self._heart = HostHeart()
        self._writer = Writer(self.path, self._heart, holds.BEAT_S)
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
                f'ledger is {masked(uri)!r}; write "sqlite:///inf-ledger.db" for a'
                ' file in the working directory, "sqlite:////var/lib/inf-ledger.db", or'
                ' "postgresql://localhost:5432/inf"'
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
        """Hand over a settlement at once; the awaitable ends when it is durable."""
        return self._writer.submit(event)

    def transact(self, work: Work[T]) -> Awaitable[T]:
        """Hand over work at once; the awaitable ends with its result, when that is durable."""
        return self._writer.submit(work)

    async def read(self, work: Work[T]) -> T:
        """Run steps that only read."""
        return await self._reader.run(work)

    async def check(self) -> None:
        """See that the file is there, and of this version; nothing is made or changed."""
        await asyncio.to_thread(lambda: connect_to_read(self.path).close())

    async def migrate(self) -> tuple[int, int]:
        """Bring a file that is there to this version; return its version before and now."""
        before = version_of(self.path)
        await self.read(accounts_version)
        return before, SCHEMA_VERSION

    async def elect(self, sink: str) -> bool:
        """Become, or stay, the one who delivers to a sink; False while another process is it."""
        lock = self._elected.get(sink)
        if lock is None or not lock.held:
            await self._writer.run_job(lambda _: None)  # or it says why it cannot be opened
            # Here, at once: what a thread takes would be taken also for who is cancelled meanwhile.
            lock = self._elected.setdefault(sink, RelayLock.of(self.path, sink))
        return lock.take()

    async def resign(self, sink: str) -> None:
        """Let another process deliver to a sink."""
        lock = self._elected.pop(sink, None)
        if lock is not None:
            lock.release()

    async def wait(self, generation: int, timeout_s: float) -> None:
        """Return when this process has committed since `generation`, or after `timeout_s`."""
        await self._writer.wait(generation, timeout_s)

    async def aclose(self) -> None:
        """Finish what was handed over, and close; the next use opens anew."""
        await self._reader.aclose()
        await self._writer.aclose()
        for sink in list(self._elected):
            await self.resign(sink)
