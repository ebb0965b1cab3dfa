"""The connections of one event loop to a ledger in PostgreSQL: a writer, readers, the relay's."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Any

import asyncpg

from inf_middleware.background import Background
from inf_middleware.domain.errors import LedgerUnavailable, MiddlewareError
from inf_middleware.ledgers import holds
from inf_middleware.ledgers.heart import ServerHeart
from inf_middleware.ledgers.postgres_connecting import (
    COMMAND_TIMEOUT_S,
    WRITER_SETTINGS,
    closed,
    connect,
)
from inf_middleware.ledgers.postgres_readers import Readers
from inf_middleware.ledgers.postgres_relay import RelayConnection
from inf_middleware.ledgers.postgres_steps import (
    FAILURES,
    NOW_MS,
    failed,
    run,
    settle_plain,
    writing,
)
from inf_middleware.ledgers.rows import Rows
from inf_middleware.ledgers.settling import settle_all
from inf_middleware.ledgers.steps import Work

_log = logging.getLogger("inf_middleware.ledgers")

# One commit writes at most this many, and so many may wait (see the writer of SQLite).
BATCH_MAX = 512
PENDING_MAX = 20_000

# From so many on those that came together are split in two: below it a commit's own cost is more
# than what the other half does meanwhile.
_SPLIT_FROM = 64

# Where money is held it mostly stays so for as long as calls run: asked again each second, a batch
# that is sent in vain costs next to nothing.
_PLAIN_AGAIN_S = 1.0

# What one item may be at fault for, and not its neighbours.
_ITEM_FAILURES = (asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)

_Item = tuple[Rows | Work[Any], "asyncio.Future[Any]"]


def batch_size(waiting: int, in_step: bool) -> int:
    """Return how many of those that wait are written next.

    `in_step`: nobody had come while the last ones were written. Who waited for these comes again
    when they are durable, so that this process and the server take turns in doing nothing: split
    once, one half's next bills are made while the other half is written.
    """
    if in_step and waiting >= _SPLIT_FROM:
        return min((waiting + 1) // 2, BATCH_MAX)
    return BATCH_MAX


class Session:
    """The connections of one event loop: a writer, some readers, and the relay's."""

    def __init__(
        self, uri: str, heart: ServerHeart, committed: Any, relay: RelayConnection
    ) -> None:
        self._uri = uri
        self._heart = heart
        self._committed = committed
        self._waiting: list[_Item] = []
        self._wake = asyncio.Event()
        self._writing = Background()
        self._writer: asyncpg.Connection[Any] | None = None
        self.readers = Readers(uri)
        self.relay = relay
        self._closing = False
        self._plain_from = 0.0
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

    async def aclose(self) -> None:
        """Finish what was handed over, and close."""
        self._closing = True
        self._wake.set()
        writing = self._writing.task
        if writing is not None:
            await asyncio.wait([writing])
        if self._writer is not None and not self._writer.is_closed():
            await closed(self._writer.close())
        await self.relay.aclose()
        await self.readers.aclose()

    async def _write(self) -> None:
        try:
            await self._write_until_closed()
        except BaseException:
            # Its event loop ends: a connection that stays open may have the lock of writers.
            self._drop_writer()
            raise

    async def _write_until_closed(self) -> None:
        next_beat = 0.0
        in_step = False
        loop = asyncio.get_running_loop()
        while True:
            if not self._waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(next_beat - loop.time(), 0.01)):
                        await self._wake.wait()
                self._wake.clear()
            if self._waiting:
                count = batch_size(len(self._waiting), in_step)
                batch, self._waiting = self._waiting[:count], self._waiting[count:]
                await self._commit(batch)
                in_step = not self._waiting
            elif self._closing:
                return
            if loop.time() >= next_beat:  # however many wait
                next_beat = loop.time() + holds.BEAT_S
                await self._beat()

    async def _beat(self) -> None:
        try:
            connection = await self._connection()
            self._heart.set(await connection.fetchval(NOW_MS))
            async with writing(connection):
                await run(connection, self._heart.beat())
        except Exception as error:  # also one that nobody foresaw: others wait for this task
            self._heart.missed()
            self._drop_writer()
            _log.warning("the ledger's heartbeat failed: %r", error)
        else:
            self._heart.beaten()

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
            if not isinstance(error, FAILURES):
                _log.exception("a batch of %d failed in an unforeseen way", len(batch))
            self._drop_writer()
            failure = failed(self._uri, "failed", error)
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
        if await self._settle_plain(connection, batch):
            return [None] * len(batch)
        results: list[Any] = []
        settling: list[Rows] = []
        async with writing(connection):
            for work, _ in batch:
                if isinstance(work, Rows):
                    settling.append(work)
                    results.append(None)
                    continue
                if settling:
                    await run(connection, settle_all(settling))
                    settling = []
                try:
                    results.append(await run(connection, work()))
                except MiddlewareError as error:  # raised before its first write
                    results.append(error)
            if settling:
                await run(connection, settle_all(settling))
        return results

    async def _settle_plain(self, connection: Any, batch: Sequence[_Item]) -> bool:
        """Settle a batch that is nothing but bills, while nothing is held."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._plain_from:
            return False
        rows = [
            work
            for work, _ in batch
            if isinstance(work, Rows) and work.state is None and not work.again
        ]
        if len(rows) < len(batch):
            return False
        if await settle_plain(connection, rows):
            return True
        self._plain_from = loop.time() + _PLAIN_AGAIN_S
        return False

    async def _connection(self) -> "asyncpg.Connection[Any]":
        if self._writer is None or self._writer.is_closed():
            async with asyncio.timeout(COMMAND_TIMEOUT_S):  # of all of it: somebody waits
                await self.readers.open()  # which makes the schema
                # Each statement of this level has its own snapshot (see `writing`).
                level = {"default_transaction_isolation": "read committed"}
                self._writer = await connect(self._uri, WRITER_SETTINGS | level)
                self._heart.set(await self._writer.fetchval(NOW_MS))
        return self._writer

    def _drop_writer(self) -> None:
        if self._writer is not None:
            self._writer.terminate()
            self._writer = None
