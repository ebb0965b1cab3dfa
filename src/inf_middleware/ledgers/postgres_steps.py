"""Steps run on a connection to PostgreSQL, one writer at a time, and the version of its schema."""

import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

import asyncpg

from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.domain.uris import masked
from inf_middleware.ledgers.arrays import RECORD, SETTLE, settlements_of, storable
from inf_middleware.ledgers.rows import Rows
from inf_middleware.ledgers.steps import Ask, Record, Steps, T

# One file per version, `postgres-N.sql`, run in order; numbers are its own, and begin with 2.
SCHEMA_VERSION, FIRST_VERSION = 5, 2

# An index over a hundred million records takes minutes; a server that is lost meanwhile is tried
# again after as long.
_MIGRATION_TIMEOUT_S = 600.0

# All of a ledger's tables, views and functions are in it.
SCHEMA = "inf_ledger"

# The key of an advisory lock: of whoever writes and migrates; a number that nobody else takes.
_WRITER_LOCK = 7_311_554_620_118

FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


def failed(uri: str, what: str, error: Exception) -> LedgerUnavailable:
    """Return what is raised for a failure: which ledger it was, in what, and why."""
    where = masked(uri).partition("?")[0]  # a query may have the password
    return LedgerUnavailable(f"the ledger {where} {what}: {error or type(error).__name__}")


NOW_MS = "SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)"


# Of calls that may have been ended at a checkpoint, those that were.
_LOST = "SELECT request_id FROM request WHERE request_id = ANY ($1) AND outcome = 'worker_lost'"

# In one round trip. What follows sees what others committed before the lock was given: each
# statement of this level has its own snapshot.
_BEGIN = f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({_WRITER_LOCK})"


@contextlib.asynccontextmanager
async def writing(connection: Any) -> AsyncIterator[None]:
    """Be the one who writes, in a transaction."""
    try:
        await connection.execute(_BEGIN)
        yield
        await connection.execute("COMMIT")
    except TimeoutError:
        raise  # a server that is silent is asked no more: whoever called drops the connection
    except BaseException:
        if connection.is_in_transaction():
            await connection.execute("ROLLBACK")
        raise


async def settle_plain(connection: Any, rows: Sequence[Rows]) -> bool:
    """Settle in a transaction and a round trip of its own, where that is all there is to do."""
    done: bool = await connection.fetchval(SETTLE, _WRITER_LOCK, settlements_of(rows))
    return done


async def run(connection: Any, steps: Steps[T]) -> T:
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
        await connection.fetch(RECORD, settlements_of(ask.rows))
        again = [row.request_id for row in ask.rows if row.again]
        return [tuple(row) for row in await connection.fetch(_LOST, again)] if again else []
    sql = numbered(ask.sql)
    if ask.many:
        if ask.params:
            await connection.executemany(sql, [[*map(storable, row)] for row in ask.params])
        return []
    return [tuple(row) for row in await connection.fetch(sql, *map(storable, ask.params))]


@lru_cache(512)
def numbered(sql: str) -> str:
    """Return a statement as PostgreSQL takes it: its parameters have numbers."""
    first, *rest = sql.split("?")
    return first + "".join(f"${number}{part}" for number, part in enumerate(rest, 1))


async def prepare(connection: Any) -> None:
    """Assert what makes "committed" mean "durable", and make the schema where it is not.

    Raises:
        LedgerUnavailable: A crash would lose what was committed, or another version made it.
    """
    for name in ("fsync", "synchronous_commit"):
        if await connection.fetchval("SELECT current_setting($1)", name) == "off":
            raise LedgerUnavailable(
                f"the ledger's server has {name} = off, and would lose bills in a crash:"
                f" set {name} = on"
            )
    async with writing(connection):
        found = await version_of(connection)
        first = FIRST_VERSION if found is None else found + 1
        for version in range(first, SCHEMA_VERSION + 1):
            schema = files("inf_middleware") / "ledgers" / f"postgres-{version}.sql"
            await connection.execute(schema.read_text("utf-8"), timeout=_MIGRATION_TIMEOUT_S)
    found = await version_of(connection)
    if found != SCHEMA_VERSION:
        raise LedgerUnavailable(wrong_version(found))


async def version_of(connection: Any) -> int | None:
    """Return the version of the ledger in a database, None where there is none."""
    if await connection.fetchval("SELECT to_regclass($1)", f"{SCHEMA}.meta") is None:
        return None
    found = await connection.fetchval(f"SELECT schema_version FROM {SCHEMA}.meta")
    return int(found)


def wrong_version(found: int | None) -> str:
    """Say what is wrong with a ledger of another version, or none."""
    if found is None:
        return "there is no ledger in that database"
    return (
        f"the ledger has schema version {found}, and this library writes version {SCHEMA_VERSION}:"
        " use the version of inf-middleware that wrote it, or a later one"
    )
