"""Who delivers to a sink of a ledger in PostgreSQL: a lock on a connection, which it ends with."""

import asyncio
import hashlib
from typing import Any

import asyncpg

from inf_middleware.background import Background
from inf_middleware.ledgers.postgres_connecting import closed, connect
from inf_middleware.ledgers.postgres_steps import FAILURES

# The advisory locks of who delivers have two keys, a number that nobody else takes and that of the
# sink. Sinks whose numbers are the same have a lock in common, and are delivered by one process.
_RELAYS = 731_155_462

_TAKE = "SELECT pg_try_advisory_lock($1, $2)"
_GIVE = "SELECT pg_advisory_unlock($1, $2)"

# Who has a lock says so this often. Where it has not for that long, with its host standing still or
# cut off, the server ends its session (PostgreSQL 14 and later): the lock would stay with it.
_BEAT_S, _SILENT_MAX_S = 3.0, 10.0

_LEASE = "SELECT set_config(name, $1, false) FROM pg_settings WHERE name = 'idle_session_timeout'"

# Only of those that have the lock: what ended meanwhile may have given its number to another.
_END = """
SELECT pg_terminate_backend(pid) FROM pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 2
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND CAST(classid AS BIGINT) = $1 AND pid = ANY ($2)
"""


class RelayConnection:
    """The locks of who delivers, as one event loop has them; open while it has any.

    `held` is of the process: by which process of the server each of its event loops has locks.
    """

    def __init__(self, uri: str, held: dict[asyncio.AbstractEventLoop, int]) -> None:
        self._uri = uri
        self._held = held
        self._connection: asyncpg.Connection[Any] | None = None
        self._sinks: set[str] = set()  # whose locks the connection has
        self._asking: set[str] = set()
        self._keeping = Background()
        self._one_at_a_time = asyncio.Lock()  # two would each have a connection

    async def elect(self, sink: str) -> bool:
        """Take the lock of a sink, or keep it; False while another has it."""
        self._asking.add(sink)
        async with self._one_at_a_time:
            is_there = await self._is_there()
            if sink in self._sinks:
                self._asking.discard(sink)
            elif sink in self._asking:  # else it was asked for with others while this one waited
                await self._ask(self._connection if is_there else None)
            return sink in self._sinks

    async def resign(self, sink: str) -> None:
        """Let another deliver to a sink."""
        try:
            async with self._one_at_a_time:
                self._asking.discard(sink)
                if sink in self._sinks:
                    await self._give(sink)
        except BaseException:
            if self._connection is not None:  # better no lock than one of nobody's
                self._connection.terminate()
            raise

    async def aclose(self) -> None:
        """Let others deliver."""
        connection, self._connection = self._connection, None
        self._sinks.clear()
        await self._keeping.end()
        if connection is not None and not connection.is_closed():
            self._held.pop(asyncio.get_running_loop(), None)
            await closed(connection.close())

    async def _give(self, sink: str) -> None:
        self._sinks.discard(sink)
        if not self._sinks:
            await self.aclose()
        elif self._connection is not None and not self._connection.is_closed():
            await self._connection.execute(_GIVE, _RELAYS, _number_of(sink))

    async def _is_there(self) -> bool:
        """Tell whether locks are had still, and say so to the server."""
        connection = self._connection
        if connection is not None and not connection.is_closed():
            try:
                await connection.fetchval("SELECT 1")
            except FAILURES:
                connection.terminate()
            else:
                return True
        self._sinks.clear()
        return False

    async def _ask(self, had: "asyncpg.Connection[Any] | None") -> None:
        """Take the locks of all who ask, where they are free."""
        connection = had or await connect(self._uri)
        asking, self._asking = self._asking, set()
        try:
            taken = {sink for sink in asking if await self._takes(connection, sink)}
            if taken != asking:
                await self._end_those_left(connection)
            if taken and had is None:
                await connection.execute(_LEASE, f"{_SILENT_MAX_S:.0f}s")
        except BaseException:
            self._asking |= asking
            connection.terminate()
            raise
        self._sinks |= taken
        if self._sinks:
            self._keep(connection)
        else:
            await closed(connection.close())

    async def _takes(self, connection: "asyncpg.Connection[Any]", sink: str) -> bool:
        return bool(await connection.fetchval(_TAKE, _RELAYS, _number_of(sink)))

    def _keep(self, connection: "asyncpg.Connection[Any]") -> None:
        self._connection = connection
        self._held[asyncio.get_running_loop()] = connection.get_server_pid()
        if self._keeping.task is None:
            self._keeping.start(self._beat, "inf-middleware-relay-lock")

    async def _beat(self) -> None:
        try:
            while True:
                await asyncio.sleep(_BEAT_S)
                async with self._one_at_a_time:
                    await self._is_there()
        except asyncio.CancelledError:
            # Its event loop ends, perhaps without a shutdown: a connection that stays open until it
            # is collected would keep all others from delivering.
            if self._connection is not None:
                self._held.pop(asyncio.get_running_loop(), None)
                self._connection.terminate()
            raise

    async def _end_those_left(self, connection: "asyncpg.Connection[Any]") -> None:
        """End what this process' own loops have left that run no more, uncancelled too.

        The locks are free a moment later, for the next try.
        """
        left = {loop: pid for loop, pid in self._held.items() if not loop.is_running()}
        if left:
            await connection.execute(_END, _RELAYS, list(left.values()))
            for loop in left:
                self._held.pop(loop, None)


def _number_of(sink: str) -> int:
    digest = hashlib.sha256(sink.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], signed=True)
