"""The connections of one event loop that only read, and the one attempt to open a ledger."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from inf_middleware.ledgers.postgres_connecting import (
    COMMAND_TIMEOUT_S,
    WRITER_SETTINGS,
    closed,
    connect,
)
from inf_middleware.ledgers.postgres_steps import SCHEMA, prepare

# Connections of one process that only read: look-ups and reports are short.
READERS_MAX = 4

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
        return await asyncpg.create_pool(connect=self._connect, min_size=0, max_size=READERS_MAX)

    async def _connect(self, *_: Any, **__: Any) -> "asyncpg.Connection[Any]":
        return await connect(self._uri, {"search_path": SCHEMA})

    def _opened(self, opening: "asyncio.Task[asyncpg.Pool[Any]]") -> None:
        self._opening = None
        if not opening.cancelled() and opening.exception() is None:
            self._pool = opening.result()
