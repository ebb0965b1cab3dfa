"""Who is the one relay of a ledger in PostgreSQL: a lock on a connection, which it ends with."""

import asyncio
from typing import Any

import asyncpg

from inf_middleware.background import Background
from inf_middleware.ledgers.postgres_readers import closed, connect
from inf_middleware.ledgers.postgres_steps import FAILURES

# The key of the advisory lock of who relays; a number that nobody else takes.
_RELAY_LOCK = 7_311_554_620_119

# Who has the lock says so this often. Where it has not for that long, with its host standing still
# or cut off, the server ends its session (PostgreSQL 14 and later): the lock would stay with it.
_BEAT_S, _SILENT_MAX_S = 3.0, 10.0

_LEASE = "SELECT set_config(name, $1, false) FROM pg_settings WHERE name = 'idle_session_timeout'"

# Only of those that have the lock: what ended meanwhile may have given its number to another.
_END = """
SELECT pg_terminate_backend(pid) FROM pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 1
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (CAST(classid AS BIGINT) << 32) | CAST(objid AS BIGINT) = $1 AND pid = ANY ($2)
"""


class RelayConnection:
    """The relay's lock as one event loop has it.

    `held` is of the process: by which process of the server each of its event loops has the lock.
    """

    def __init__(self, uri: str, held: dict[asyncio.AbstractEventLoop, int]) -> None:
        self._uri = uri
        self._held = held
        self._connection: asyncpg.Connection[Any] | None = None
        self._keeping = Background()
        self._electing = asyncio.Lock()
        self._refusals = 0

    async def elect(self) -> bool:
        """Take the lock, or keep it; False while another has it."""
        refusals = self._refusals
        async with self._electing:  # two at once would each have a connection, and one the lock
            if await self._has_it():
                return True
            if self._refusals != refusals:
                return False  # as another sink was told while this one waited
            connection = await connect(self._uri)
            try:
                if await connection.fetchval("SELECT pg_try_advisory_lock($1)", _RELAY_LOCK):
                    await connection.execute(_LEASE, f"{_SILENT_MAX_S:.0f}s")
                    self._keep(connection)
                    return True
                await self._end_those_left(connection)
            except BaseException:
                connection.terminate()
                raise
            self._refusals += 1
            await closed(connection.close())
            return False

    async def aclose(self) -> None:
        """Let another be the relay."""
        connection, self._connection = self._connection, None
        await self._keeping.end()
        if connection is not None and not connection.is_closed():
            self._held.pop(asyncio.get_running_loop(), None)
            await closed(connection.close())

    def _keep(self, connection: "asyncpg.Connection[Any]") -> None:
        self._connection = connection
        self._held.clear()  # of others that had it
        self._held[asyncio.get_running_loop()] = connection.get_server_pid()
        if self._keeping.task is None:
            self._keeping.start(self._beat, "inf-middleware-relay-lock")

    async def _has_it(self) -> bool:
        """Tell whether the lock is had still, and say so to the server."""
        connection = self._connection
        if connection is None or connection.is_closed():
            return False
        try:
            await connection.fetchval("SELECT 1")
        except FAILURES:
            connection.terminate()
            return False
        return True

    async def _beat(self) -> None:
        try:
            while True:
                await asyncio.sleep(_BEAT_S)
                async with self._electing:
                    await self._has_it()
        except asyncio.CancelledError:
            # Its event loop ends, perhaps without a shutdown: a connection that stays open until it
            # is collected would keep all others from delivering.
            if self._connection is not None:
                self._connection.terminate()
            raise

    async def _end_those_left(self, connection: "asyncpg.Connection[Any]") -> None:
        """End what this process' own loops have left that run no more, uncancelled too.

        The lock is free a moment later, for the next try.
        """
        left = [pid for loop, pid in self._held.items() if not loop.is_running()]
        if left:
            await connection.execute(_END, _RELAY_LOCK, left)
