"""The ledger in an SQLite file: one writer thread per process, group commit, strict durability.

Settlements of one turn of an event loop are handed to the thread together; the thread takes all
that waits and commits it at once. All workers of a host share the file.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import apsw

from inf_middleware.domain.errors import ConfigError, LedgerUnavailable
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers import outbox
from inf_middleware.ledgers.connection import connect
from inf_middleware.ledgers.election import RelayLock
from inf_middleware.ledgers.rows import Rows, rows_of, write
from inf_middleware.ports import Attempt, Replay

# One commit writes at most this many: below it a batch's own work stays near one fsync.
BATCH_MAX = 512

# Settlements that may wait: each belongs to an open request, and no process holds more of them.
PENDING_MAX = 20_000

# After these the connection is not to be trusted: it is closed, and opened anew for the next batch.
_FATAL = (apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError, apsw.FullError)

_Settling = tuple[BillingEvent, asyncio.Future[None]]


class _Batch(NamedTuple):
    loop: asyncio.AbstractEventLoop
    settling: list[_Settling]


class _Job(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    work: Callable[[apsw.Connection], Any]


class _Stop(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]


class SqliteLedger:
    """Keeps records, postings and events in one file, and is its own outbox.

    Nothing is opened before the first use. `commits` counts the transactions of this process.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.commits = 0
        self.generation = 0
        self._turn: dict[asyncio.AbstractEventLoop, list[_Settling]] = {}
        self._changed: dict[asyncio.AbstractEventLoop, asyncio.Event] = {}
        self._queue: SimpleQueue[_Batch | _Job | _Stop] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._pending = 0
        self._db: apsw.Connection | None = None  # the thread's own
        self._relay_lock = RelayLock(Path(f"{self.path}.relay"))

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

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Hand over a settlement at once; the awaitable ends when it is durable.

        Raises:
            LedgerUnavailable: From the awaitable; nothing was recorded.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if self._pending >= PENDING_MAX:
            future.set_exception(LedgerUnavailable(f"{PENDING_MAX:,} settlements wait already"))
            return future
        turn = self._turn.get(loop)
        if turn is None:
            turn = self._turn[loop] = []
            loop.call_soon(self._hand_over, loop)
        turn.append((event, future))
        return future

    async def elect(self) -> bool:
        """Become, or stay, the one relay of this file; False while another process is it."""
        return self._relay_lock.held or bool(await self._run_job(lambda _: self._relay_lock.take()))

    async def pending(self, sink: str, count_max: int) -> Sequence[tuple[int, BillingEvent]]:
        """Return the next events after a sink's cursor; a new sink begins with the oldest."""
        rows = await self._run_job(lambda db: outbox.pending(db, sink, count_max))
        return [(seq, BillingEvent.decode(body)) for seq, body in rows]

    async def advance(self, sink: str, place: int, rejected: Mapping[str, str]) -> None:
        """Move a sink's cursor, durably; `rejected` events go to the dead letters."""
        await self._run_job(lambda db: outbox.advance(db, sink, place, rejected))

    async def attempt(self, sink: str) -> Attempt | None:
        """Return what `begin` wrote last."""
        found: Attempt | None = await self._run_job(lambda db: outbox.attempt(db, sink))
        return found

    async def begin(self, sink: str, attempt: Attempt) -> None:
        """Write down, durably, that a delivery begins."""
        await self._run_job(lambda db: outbox.begin(db, sink, attempt))

    async def replay(self, sink: str, count_max: int) -> Replay | None:
        """Return the next events that are to be sent once more."""
        found: Replay | None = await self._run_job(lambda db: outbox.replay(db, sink, count_max))
        return found

    async def replayed(self, sink: str, replay: Replay, rejected: Mapping[str, str]) -> None:
        """Go on after `replay`."""
        await self._run_job(lambda db: outbox.replayed(db, sink, replay, rejected))

    async def wait(self, generation: int, timeout_s: float) -> None:
        """Return when this process has committed since `generation`, or after `timeout_s`."""
        loop = asyncio.get_running_loop()
        changed = self._changed.get(loop)
        if changed is None:
            changed = self._changed[loop] = asyncio.Event()
        if self.generation != generation:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await changed.wait()

    async def aclose(self) -> None:
        """Finish what was handed over, and close; the next use opens anew."""
        loop = asyncio.get_running_loop()
        if loop in self._turn:
            self._hand_over(loop)
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is None or self._pid != os.getpid():
            return
        stopped: asyncio.Future[None] = loop.create_future()
        self._queue.put(_Stop(loop, stopped))
        await stopped
        thread.join()

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        settling = self._turn.pop(loop, None)
        if settling:
            with self._lock:
                self._pending += len(settling)
            self._put(_Batch(loop, settling))

    async def _run_job(self, work: Callable[[apsw.Connection], Any]) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._put(_Job(loop, future, work))
        return await future

    def _put(self, item: _Batch | _Job) -> None:
        with self._lock:
            if self._thread is None or self._pid != os.getpid():  # threads do not survive a fork
                if self._pid != os.getpid():
                    self._queue, self._db = SimpleQueue(), None
                self._pid = os.getpid()
                name = f"inf-middleware-ledger-{self.path.name}"
                self._thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._thread.start()
            self._queue.put(item)

    def _work(self) -> None:
        queue = self._queue
        item: _Batch | _Job | _Stop | None = None
        while True:
            item = item or queue.get()
            if isinstance(item, _Stop):
                self._relay_lock.release()
                self._close()
                _tell(item.loop, [(item.future, None, None)])
                return
            if isinstance(item, _Job):
                self._do(item)
                item = None
                continue
            batches, count, item = [item], len(item.settling), None
            while count < BATCH_MAX and item is None:
                try:
                    item = queue.get_nowait()
                except Empty:
                    break
                if isinstance(item, _Batch):
                    batches.append(item)
                    count += len(item.settling)
                    item = None
            self._commit(batches, count)

    def _do(self, job: _Job) -> None:
        result, failure = None, None
        try:
            result = job.work(self._connection())
        except LedgerUnavailable as error:
            failure = error
        except Exception as error:  # whatever it is: the thread lives on, for the settlements
            failure = self._failed(error)
        _tell(job.loop, [(job.future, result, failure)])

    def _commit(self, batches: list[_Batch], count: int) -> None:
        rows: list[Rows] = []
        told: list[list[tuple[asyncio.Future[None], None, LedgerUnavailable | None]]] = []
        for batch in batches:
            answers: list[tuple[asyncio.Future[None], None, LedgerUnavailable | None]] = []
            for event, future in batch.settling:
                try:
                    rows.append(rows_of(event))
                except (ValueError, TypeError, OverflowError) as error:
                    # One that cannot be written must not fail its neighbours.
                    failure = LedgerUnavailable(f"{event.id} cannot be recorded: {error}")
                    answers.append((future, None, failure))
                else:
                    answers.append((future, None, None))
            told.append(answers)
        failed = self._write(rows) if rows else None
        if failed is None:
            self.commits += 1
            self.generation += 1
        with self._lock:
            self._pending -= count
        for batch, answers in zip(batches, told, strict=True):
            outcome = [(future, None, own or failed) for future, _, own in answers]
            _tell(batch.loop, outcome, self._changed.pop(batch.loop, None))

    def _write(self, rows: list[Rows]) -> LedgerUnavailable | None:
        try:
            write(self._connection(), rows)
        except LedgerUnavailable as error:
            return error
        except (apsw.Error, OverflowError) as error:
            return self._failed(error)
        return None

    def _failed(self, error: Exception) -> LedgerUnavailable:
        if isinstance(error, _FATAL):
            self._close()
        failure = LedgerUnavailable(f"the ledger {self.path} failed: {error}")
        failure.__cause__ = error
        return failure

    def _connection(self) -> apsw.Connection:
        if self._db is None:
            self._db = connect(self.path)
        return self._db

    def _close(self) -> None:
        if self._db is not None:
            db, self._db = self._db, None
            # What was committed is durable; a checkpoint comes with the next opening.
            with contextlib.suppress(apsw.Error):
                db.close()


def _tell(
    loop: asyncio.AbstractEventLoop,
    answers: Sequence[tuple[asyncio.Future[Any], Any, Exception | None]],
    changed: asyncio.Event | None = None,
) -> None:
    def tell() -> None:
        for future, result, failure in answers:
            if future.done():  # its waiter was cancelled; the settlement stands all the same
                continue
            if failure is None:
                future.set_result(result)
            else:
                future.set_exception(failure)
        if changed is not None:
            changed.set()

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(tell)
