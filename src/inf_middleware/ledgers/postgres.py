"""The ledger in PostgreSQL, for many hosts: group commit per process, one writer at a time.

Each transaction that writes takes one advisory lock first, as SQLite's do by their nature: places
in the outbox are in the order of commits, no two batches wait for each other's rows, and what is
read within a transaction holds until its end. Batches grow while they wait, so the lock costs
latency more than throughput.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import asyncpg

from inf_middleware.background import Background
from inf_middleware.domain.errors import LedgerMissing, LedgerUnavailable, MiddlewareError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers import holds
from inf_middleware.ledgers.arrays import RECORD, columns_of, storable
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.heart import ServerHeart
from inf_middleware.ledgers.rows import Rows, rows_of
from inf_middleware.ledgers.settling import settle_all
from inf_middleware.ledgers.steps import Ask, Record, Steps, T, Work

_log = logging.getLogger("inf_middleware.ledgers")

# One file per version, `postgres-N.sql`, run in order; numbers are those of SQLite's, whose first
# version this database never had.
SCHEMA_VERSION, _FIRST_VERSION = 3, 2

# All of a ledger's tables, views and functions are in it.
SCHEMA = "inf_ledger"

# Keys of advisory locks: of whoever writes, migrates, and relays; numbers that nobody else takes.
_WRITER_LOCK, _RELAY_LOCK = 7_311_554_620_118, 7_311_554_620_119

# One commit writes at most this many, and so many may wait (see the writer of SQLite).
BATCH_MAX = 512
PENDING_MAX = 20_000

# Connections of one process that only read: look-ups and reports are short.
_READERS_MAX = 4

# A server that does not answer for so long is away: many commits, and below a caller's patience.
COMMAND_TIMEOUT_S = 5.0

_FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)

# What one item may be at fault for, and not its neighbours.
_ITEM_FAILURES = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)

_Item = tuple[Rows | Work[Any], "asyncio.Future[Any]"]


class PostgresLedger(LedgerBase):
    """A ledger in a PostgreSQL database. Nothing is opened before the first use."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._heart = self._clock = ServerHeart()
        self._commits = 0
        self._loops: dict[asyncio.AbstractEventLoop, _Session] = {}
        self._pid = 0
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
        return self._session().submit(rows)

    def transact(self, work: Work[T]) -> Awaitable[T]:
        """Hand over work at once; the awaitable ends with its result, when that is durable."""
        return self._session().submit(work)

    async def read(self, work: Work[T]) -> T:
        """Run steps that only read, as of one moment."""
        try:
            pool = await self._session().readers()
            async with (
                pool.acquire() as connection,
                connection.transaction(isolation="repeatable_read", readonly=True),
            ):
                return await _run(connection, work())
        except _FAILURES as error:
            raise LedgerUnavailable(f"the ledger cannot be read: {error!r}") from error

    async def check(self) -> None:
        """See that the ledger is there, and of this version; nothing is made or changed."""
        found = await self._version()
        if found is None:
            raise LedgerMissing(_wrong_version(found))
        if found != SCHEMA_VERSION:
            raise LedgerUnavailable(_wrong_version(found))

    async def migrate(self) -> tuple[int, int]:
        """Bring a ledger that is there to this version; return its version before and now."""
        found = await self._version()
        if found is None:
            raise LedgerUnavailable(_wrong_version(found))
        await self._session().readers()
        return found, SCHEMA_VERSION

    async def elect(self) -> bool:
        """Become, or stay, the one relay of this ledger; False while another process is it."""
        try:
            return await self._session().elect()
        except _FAILURES as error:
            raise LedgerUnavailable(f"the ledger is away: {error!r}") from error

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
            connection = await asyncpg.connect(self._uri, timeout=COMMAND_TIMEOUT_S)
            try:
                return await _version(connection)
            finally:
                await connection.close()
        except _FAILURES as error:
            raise LedgerUnavailable(f"the ledger cannot be reached: {error!r}") from error

    def _session(self) -> "_Session":
        if self._pid != os.getpid():  # connections do not survive a fork
            self._loops, self._pid = {}, os.getpid()
        loop = asyncio.get_running_loop()
        session = self._loops.get(loop)
        if session is None:
            self._loops = {loop: s for loop, s in self._loops.items() if not loop.is_closed()}
            session = self._loops[loop] = _Session(self._uri, self._clock, self.committed)
        return session


class _Session:
    """The connections of one event loop: a writer, some readers, and the relay's."""

    def __init__(self, uri: str, heart: ServerHeart, committed: Any) -> None:
        self._uri = uri
        self._heart = heart
        self._committed = committed
        self._waiting: list[_Item] = []
        self._wake = asyncio.Event()
        self._writing = Background()
        self._writer: asyncpg.Connection[Any] | None = None
        self._pool: asyncpg.Pool[Any] | None = None
        self._opening = asyncio.Lock()
        self._relay: asyncpg.Connection[Any] | None = None
        self._electing = asyncio.Lock()
        self._closing = False
        self.changed = asyncio.Event()

    def submit(self, work: Rows | Work[Any]) -> "asyncio.Future[Any]":
        """Hand something over at once; the future ends when it is durable."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if len(self._waiting) >= PENDING_MAX:
            future.set_exception(LedgerUnavailable(f"{PENDING_MAX:,} settlements wait already"))
            return future
        self._waiting.append((work, future))
        self._wake.set()
        if self._writing.task is None:
            self._writing.start(self._write, "inf-middleware-ledger")
        return future

    async def readers(self) -> "asyncpg.Pool[Any]":
        """Return the connections that only read, opened at first use."""
        async with self._opening:
            if self._pool is None:
                await self._prepare()
                self._pool = await asyncpg.create_pool(
                    self._uri,
                    min_size=0,
                    max_size=_READERS_MAX,
                    command_timeout=COMMAND_TIMEOUT_S,
                    timeout=COMMAND_TIMEOUT_S,
                    server_settings={"search_path": SCHEMA},
                )
            return self._pool

    async def elect(self) -> bool:
        """Take the relay's lock on a connection of its own, which it ends with."""
        async with self._electing:  # two at once would each have a connection, and one the lock
            if self._relay is not None and not self._relay.is_closed():
                try:
                    await self._relay.fetchval("SELECT 1")
                except _FAILURES:
                    self._relay.terminate()
                else:
                    return True
            connection = await asyncpg.connect(
                self._uri, timeout=COMMAND_TIMEOUT_S, command_timeout=COMMAND_TIMEOUT_S
            )
            try:
                if await connection.fetchval("SELECT pg_try_advisory_lock($1)", _RELAY_LOCK):
                    self._relay = connection
                    return True
            except BaseException:
                connection.terminate()
                raise
            await connection.close()
            return False

    async def aclose(self) -> None:
        """Finish what was handed over, and close."""
        self._closing = True
        self._wake.set()
        writing = self._writing.task
        if writing is not None:
            await asyncio.wait([writing])
        for connection in (self._writer, self._relay):
            if connection is not None and not connection.is_closed():
                await connection.close()
        if self._pool is not None:
            await self._pool.close()

    async def _write(self) -> None:
        try:
            await self._write_until_closed()
        except BaseException:
            # Its event loop ends: a connection that stays open may have the lock of writers.
            self._drop_writer()
            raise

    async def _write_until_closed(self) -> None:
        next_beat = 0.0
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(next_beat - loop.time(), 0.01)):
                    await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch, self._waiting = self._waiting[:BATCH_MAX], self._waiting[BATCH_MAX:]
                await self._commit(batch)
            if self._closing:
                return
            if loop.time() >= next_beat:
                next_beat = loop.time() + holds.BEAT_S
                await self._beat()

    async def _beat(self) -> None:
        try:
            connection = await self._connection()
            self._heart.set(await connection.fetchval(_NOW_MS))
            async with _writing(connection):
                await _run(connection, self._heart.beat())
        except Exception as error:  # also one that nobody foresaw: others wait for this task
            self._drop_writer()
            _log.warning("the ledger's heartbeat failed: %r", error)

    async def _commit(self, batch: Sequence[_Item]) -> None:
        try:
            results = await self._transact(batch)
        except _ITEM_FAILURES as error:
            if len(batch) > 1:
                for item in batch:
                    await self._commit([item])
                return
            results = [LedgerUnavailable(f"it cannot be recorded: {error}")]
        except LedgerUnavailable as error:
            results = [error] * len(batch)
        except Exception as error:
            # Whatever it was, those who wait are told, and the next batch has a fresh connection: a
            # session that is ended at the wrong moment makes asyncpg raise errors of its own bugs.
            if not isinstance(error, _FAILURES):
                _log.exception("a batch of %d failed in an unforeseen way", len(batch))
            self._drop_writer()
            failure = LedgerUnavailable(f"the ledger failed: {error!r}")
            failure.__cause__ = error
            results = [failure] * len(batch)
        else:
            self._committed()
            self.changed.set()
            self.changed = asyncio.Event()
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():  # its waiter was cancelled; what was written stands all the same
                continue
            if isinstance(result, MiddlewareError):
                future.set_exception(result)
            else:
                future.set_result(result)

    async def _transact(self, batch: Sequence[_Item]) -> list[Any]:
        connection = await self._connection()
        results: list[Any] = []
        settling: list[Rows] = []
        async with _writing(connection):
            for work, _ in batch:
                if isinstance(work, Rows):
                    settling.append(work)
                    results.append(None)
                    continue
                if settling:
                    await _run(connection, settle_all(settling))
                    settling = []
                try:
                    results.append(await _run(connection, work()))
                except MiddlewareError as error:  # raised before its first write
                    results.append(error)
            if settling:
                await _run(connection, settle_all(settling))
        return results

    async def _connection(self) -> "asyncpg.Connection[Any]":
        if self._writer is None or self._writer.is_closed():
            await self.readers()  # which makes the schema
            self._writer = await asyncpg.connect(
                self._uri,
                timeout=COMMAND_TIMEOUT_S,
                command_timeout=COMMAND_TIMEOUT_S,
                server_settings={"search_path": SCHEMA},
            )
            self._heart.set(await self._writer.fetchval(_NOW_MS))
        return self._writer

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.terminate()
            self._writer = None

    async def _prepare(self) -> None:
        """Assert what makes "committed" mean "durable", and make the schema where it is not."""
        connection = await asyncpg.connect(
            self._uri, timeout=COMMAND_TIMEOUT_S, server_settings={"search_path": SCHEMA}
        )
        try:
            for name in ("fsync", "synchronous_commit"):
                if await connection.fetchval("SELECT current_setting($1)", name) == "off":
                    raise LedgerUnavailable(
                        f"the ledger's server has {name} = off, and would lose bills in a crash:"
                        f" set {name} = on"
                    )
            async with _writing(connection):
                found = await _version(connection)
                first = _FIRST_VERSION if found is None else found + 1
                for version in range(first, SCHEMA_VERSION + 1):
                    schema = files("inf_middleware") / "ledgers" / f"postgres-{version}.sql"
                    await connection.execute(schema.read_text("utf-8"))
            found = await _version(connection)
            if found != SCHEMA_VERSION:
                raise LedgerUnavailable(_wrong_version(found))
        finally:
            await connection.close()


_NOW_MS = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"


# In one round trip. What follows sees what others committed before the lock was given: each
# statement of this level has its own snapshot.
_BEGIN = f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({_WRITER_LOCK})"


@contextlib.asynccontextmanager
async def _writing(connection: Any) -> AsyncIterator[None]:
    """Be the one who writes, in a transaction."""
    try:
        await connection.execute(_BEGIN)
        yield
        await connection.execute("COMMIT")
    except BaseException:
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK")
        raise


async def _run(connection: Any, steps: Steps[T]) -> T:
    """Run steps on a connection, inside whatever transaction is open."""
    rows: list[Any] = []
    try:
        ask = next(steps)
        while True:
            rows = await _ask(connection, ask)
            ask = steps.send(rows)
    except StopIteration as stop:
        result: T = stop.value
        return result


async def _ask(connection: Any, ask: Ask | Record) -> list[Any]:
    if isinstance(ask, Record):
        await connection.fetch(RECORD, *columns_of(ask.rows))
        return []
    sql = _numbered(ask.sql)
    if ask.many:
        if ask.params:
            await connection.executemany(sql, [[*map(storable, row)] for row in ask.params])
        return []
    return [tuple(row) for row in await connection.fetch(sql, *map(storable, ask.params))]


@lru_cache(512)
def _numbered(sql: str) -> str:
    first, *rest = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


async def _version(connection: Any) -> int | None:
    if await connection.fetchval("SELECT to_regclass($1)", f"{SCHEMA}.meta") is None:
        return None
    found = await connection.fetchval(f"SELECT schema_version FROM {SCHEMA}.meta")
    return int(found)


def _wrong_version(found: int | None) -> str:
    if found is None:
        return "there is no ledger in that database"
    return (
        f"the ledger has schema version {found}, and this library writes version {SCHEMA_VERSION}:"
        " use the version of inf-middleware that wrote it, or a later one"
    )
