"""The connections of one event loop that only read, and the one attempt to open a ledger."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from inf_middleware.ledgers.postgres_steps import FAILURES, SCHEMA, prepare

# Connections of one process that only read: look-ups and reports are short.
READERS_MAX = 4

# A server that does not answer for so long is away: many commits, and half of a caller's patience,
# since a look-up may ask twice.
COMMAND_TIMEOUT_S = 5.0

# Of a connection that writes.
WRITER_SETTINGS = {
    "search_path": SCHEMA,
    # Who waits for a lock is told by the server, a tenth before it would be given up here: what is
    # given up here waits on at the server, one connection more with each try.
    "lock_timeout": f"{COMMAND_TIMEOUT_S * 900:.0f}ms",
    # All others wait for who has the lock of writers: where it says nothing, since its host stands
    # still or is cut off, the server gives it up, as the server is given up here.
    "idle_in_transaction_session_timeout": f"{COMMAND_TIMEOUT_S * 1000:.0f}ms",
}

_BEGIN = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"


class Readers:
    """Opens the ledger at first use, once for all who wait, and lends connections."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._pool: asyncpg.Pool[Any] | None = None
        self._opening: asyncio.Task[asyncpg.Pool[Any]] | None = None

    async def open(self, timeout_s: float | None = COMMAND_TIMEOUT_S) -> "asyncpg.Pool[Any]":
        """Return the connections; the attempt to open, and its failure, is of all who wait.

        It goes on where one of them gives up: it may be a migration.
        """
        if self._pool is None:
            opening = self._opening
            if opening is None:
                self._opening = opening = asyncio.create_task(self._open())
                opening.add_done_callback(self._opened)
            await asyncio.wait([opening], timeout=timeout_s)
            if not opening.done():
                raise TimeoutError(f"it was not opened within {timeout_s:g} s")
            if opening.cancelled():
                raise asyncpg.InterfaceError("it was closed while it was opened")
            return opening.result()
        return self._pool

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        """Lend a connection: what is read on it is as of one moment."""
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            pool = await self.open()
            connection = await pool.acquire()
        try:
            await connection.execute(_BEGIN)
            yield connection
            await connection.execute("COMMIT")
        except BaseException:
            # A fresh one costs less than to wait for what a server that is silent makes of it.
            with contextlib.suppress(asyncpg.InterfaceError):  # it was lost, and is back already
                connection.terminate()
            raise
        finally:
            await pool.release(connection, timeout=COMMAND_TIMEOUT_S)

    async def aclose(self) -> None:
        """Close what is open."""
        opening = self._opening
        if opening is not None:
            opening.cancel()
            await asyncio.wait([opening])
        if self._pool is not None:
            await closed(self._pool.close())

    async def _open(self) -> "asyncpg.Pool[Any]":
        connection = await connect(self._uri, WRITER_SETTINGS)
        try:
            await prepare(connection)
        except BaseException:
            connection.terminate()
            raise
        await closed(connection.close())
        return await asyncpg.create_pool(
            self._uri,
            min_size=0,
            max_size=READERS_MAX,
            command_timeout=COMMAND_TIMEOUT_S,
            timeout=COMMAND_TIMEOUT_S,
            target_session_attrs=_meant(self._uri),
            server_settings={"search_path": SCHEMA},
        )

    def _opened(self, opening: "asyncio.Task[asyncpg.Pool[Any]]") -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._pool = opening.result()


async def connect(uri: str, settings: Mapping[str, str] | None = None) -> "asyncpg.Connection[Any]":
    """Connect to a ledger's server."""
    return await asyncpg.connect(
        uri,
        timeout=COMMAND_TIMEOUT_S,
        command_timeout=COMMAND_TIMEOUT_S,
        target_session_attrs=_meant(uri),
        server_settings=dict(settings or {}),
    )


def _meant(uri: str) -> SessionAttribute | None:
    """Return which of several servers is meant: that which is no standby, unless the URI says."""
    parts = urlsplit(uri)
    query = parse_qs(parts.query)
    hosts = ",".join([parts.netloc.rpartition("@")[2], *query.get("host", ())])
    if "," not in hosts.strip(",") or "target_session_attrs" in query:
        return None
    return SessionAttribute.primary


async def closed(closing: Awaitable[None]) -> None:
    """Wait until something is closed, or given up: it lets go of its connections by then."""
    with contextlib.suppress(*FAILURES):
        async with asyncio.timeout(COMMAND_TIMEOUT_S):
            await closing
