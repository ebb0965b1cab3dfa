"""The ledger in PostgreSQL, for many hosts: group commit per process, one writer at a time.

Each transaction that writes takes one advisory lock first, as SQLite's do by their nature: places
in the outbox are in the order of commits, no two batches wait for each other's rows, and what is
read within a transaction holds until its end. Batches grow while they wait, so the lock costs
latency more than throughput.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import Awaitable
from pathlib import Path

from inf_middleware.domain.errors import LedgerMissing, LedgerUnavailable
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.heart import ServerHeart
from inf_middleware.ledgers.postgres_connecting import closed, connect
from inf_middleware.ledgers.postgres_relay import RelayConnection
from inf_middleware.ledgers.postgres_session import Session
from inf_middleware.ledgers.postgres_steps import (
    FAILURES,
    SCHEMA_VERSION,
    failed,
    run,
    version_of,
    wrong_version,
)
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.steps import T, Work


class PostgresLedger(LedgerBase):
    """A ledger in a PostgreSQL database. Nothing is opened before the first use."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._heart = self._clock = ServerHeart()
        self._commits = 0
        self._loops: dict[asyncio.AbstractEventLoop, Session] = {}
        self._relays: dict[asyncio.AbstractEventLoop, int] = {}
        self._pid = 0
        # Calls of this process that held money: others may have ended them meanwhile.
        self._holding: set[str] = set()
        # By its address, so that bills of one ledger are never handed to another; never by secrets.
        digest = hashlib.sha256(uri.rpartition("@")[2].encode()).hexdigest()[:12]
        self.spool_directory = Path(f"inf-ledger-{digest}.spool")

    @property
    def commits(self) -> int:
        """How many transactions this process has committed."""
        return self._commits

    @property
    def generation(self) -> int:
        """Grows with each commit of this process."""
        return self._commits

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Hand over a settlement at once; the awaitable ends when it is durable."""
        try:
            rows = rows_of(event)
        except (ValueError, TypeError, OverflowError) as error:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_exception(LedgerUnavailable(f"{event.id} cannot be recorded: {error}"))
            return future
        held = event.id in self._holding
        rows.again = held or event.was_read_back  # out of a spool, perhaps of another process
        settling = self._session().submit(rows)
        if held:
            settling.add_done_callback(lambda done: self._settled(event.id, done))
        return settling

    async def hold(
        self, event: BillingEvent, amount_nano: int, credit_limit_nano: int, spare_nano: int = 0
    ) -> int | None:
        """Hold an amount for a call, as any ledger does, and remember the call until its end."""
        self._holding.add(event.id)
        available: int | None = 0
        try:
            available = await super().hold(event, amount_nano, credit_limit_nano, spare_nano)
        finally:
            if available is not None:
                self._holding.discard(event.id)
        return available

    async def void(self, request_id: str) -> None:
        """End a hold and a claim without a bill, as any ledger does."""
        await super().void(request_id)
        self._holding.discard(request_id)

    def transact(self, work: Work[T]) -> Awaitable[T]:
        """Hand over work at once; the awaitable ends with its result, when that is durable."""
        return self._session().submit(work)

    async def read(self, work: Work[T]) -> T:
        """Run steps that only read, as of one moment."""
        try:
            async with self._session().readers.reading() as connection:
                return await run(connection, work())
        except FAILURES as error:
            raise failed(self._uri, "cannot be read", error) from error

    async def check(self) -> None:
        """See that the ledger is there, and of this version; nothing is made or changed."""
        found = await self._version()
        if found is None:
            raise LedgerMissing(wrong_version(found))
        if found != SCHEMA_VERSION:
            raise LedgerUnavailable(wrong_version(found))

    async def migrate(self) -> tuple[int, int]:
        """Bring a ledger that is there to this version; return its version before and now."""
        found = await self._version()
        if found is None:
            raise LedgerUnavailable(wrong_version(found))
        try:
            await self._session().readers.open(timeout_s=None)  # nobody waits but who asked for it
        except FAILURES as error:
            raise failed(self._uri, "cannot be migrated", error) from error
        return found, SCHEMA_VERSION

    async def elect(self, sink: str) -> bool:
        """Become, or stay, the one who delivers to a sink; False while another process is it."""
        try:
            return await self._session().relay.elect(sink)
        except FAILURES as error:
            raise failed(self._uri, "is away", error) from error

    async def resign(self, sink: str) -> None:
        """Let another process deliver to a sink."""
        await self._session().relay.resign(sink)

    async def wait(self, generation: int, timeout_s: float) -> None:
        """Return when this process has committed since `generation`, or after `timeout_s`."""
        if self._commits == generation:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._session().changed.wait()

    async def aclose(self) -> None:
        """Finish what was handed over, and close; the next use opens anew."""
        session = self._loops.pop(asyncio.get_running_loop(), None)
        if session is not None and self._pid == os.getpid():
            await session.aclose()

    def committed(self) -> None:
        """Count a transaction."""
        self._commits += 1

    async def _version(self) -> int | None:
        try:
            connection = await connect(self._uri)
            try:
                return await version_of(connection)
            finally:
                await closed(connection.close())
        except FAILURES as error:
            raise failed(self._uri, "cannot be reached", error) from error

    def _settled(self, request_id: str, done: "asyncio.Future[None]") -> None:
        if not done.cancelled() and done.exception() is None:
            self._holding.discard(request_id)

    def _session(self) -> "Session":
        if self._pid != os.getpid():  # connections do not survive a fork
            self._loops, self._relays, self._pid = {}, {}, os.getpid()
        loop = asyncio.get_running_loop()
        session = self._loops.get(loop)
        if session is None:
            self._loops = {loop: s for loop, s in self._loops.items() if not loop.is_closed()}
            relay = RelayConnection(self._uri, self._relays)
            session = self._loops[loop] = Session(self._uri, self._clock, self.committed, relay)
        return session
