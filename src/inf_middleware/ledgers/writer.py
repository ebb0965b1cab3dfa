"""The writer thread of an SQLite ledger: takes all that waits and commits it at once.

What belongs to one turn of an event loop is handed over together. A failing item must not fail its
neighbours: a batch that fails for one of them is written again one by one.
"""

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import apsw

from inf_middleware.domain.errors import LedgerUnavailable, MiddlewareError
from inf_middleware.ledgers.connection import FATAL, check_name, connect
from inf_middleware.ledgers.forking import Forking
from inf_middleware.ledgers.heart import Heart
from inf_middleware.ledgers.sqlite_steps import Item, Outcome, transact, transact_all

_log = logging.getLogger("inf_middleware.ledgers")

# One commit writes at most this many: below it a batch's own work stays near one fsync.
BATCH_MAX = 512

# What may wait: each belongs to an open request, and no process holds more of them.
PENDING_MAX = 20_000


class _Batch(NamedTuple):
    """What is to be written, and who waits for it, in the same order.

    Two lists, for an object less that is alive of each call until the commit.
    """

    loop: asyncio.AbstractEventLoop
    items: list[Item]
    futures: list[asyncio.Future[Any]]


class _Job(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    work: Callable[[apsw.Connection], Any]


class _Stop(NamedTuple):
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[None]


class Writer(Forking):
    """One thread with the one writing connection of this process; started at first use.

    `commits` counts its transactions. `heart` beats every `beat_s` seconds, whatever else there is
    to do or not, and soon after the file is opened.
    """

    def __init__(self, path: Path, heart: Heart, beat_s: float) -> None:
        super().__init__()
        self.commits = 0
        self.generation = 0
        self._path = path
        self._heart = heart
        self._beat_s = beat_s
        self._next_beat = 0.0
        self._turn: dict[asyncio.AbstractEventLoop, _Batch] = {}
        self._changed: dict[asyncio.AbstractEventLoop, asyncio.Event] = {}
        self._queue: SimpleQueue[_Batch | _Job | _Stop] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._pending = 0
        self._db: apsw.Connection | None = None  # the thread's own, but for a fork
        self._opened = False

    def submit(self, item: Item) -> asyncio.Future[Any]:
        """Hand something over at once; the future ends when it is durable."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self._pending >= PENDING_MAX:
            future.set_exception(LedgerUnavailable(f"{PENDING_MAX:,} settlements wait already"))
            return future
        turn = self._turn.get(loop)
        if turn is None:
            turn = self._turn[loop] = _Batch(loop, [], [])
            loop.call_soon(self._hand_over, loop)
        turn.items.append(item)
        turn.futures.append(future)
        return future

    async def run_job(self, work: Callable[[apsw.Connection], Any]) -> Any:
        """Run something of its own transaction on the writing connection."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._put(_Job(loop, future, work))
        return await future

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
        stopped: asyncio.Future[None] = loop.create_future()
        with self._lock:
            thread, self._thread = self._thread, None
            if thread is None or self._pid != os.getpid():
                return
            # What comes from here on is for another thread, which must not end for this one.
            self._queue.put(_Stop(loop, stopped))
            self._queue = SimpleQueue()
        await stopped
        thread.join()

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        turn = self._turn.pop(loop, None)
        if turn is not None:
            self._put(turn, len(turn.items))

    def _put(self, item: _Batch | _Job, count: int = 0) -> None:
        with self._lock:
            self._pending += count
            if self._thread is None or self._pid != os.getpid():  # threads do not survive a fork
                if self._pid != os.getpid():
                    self._queue, self._db = SimpleQueue(), None
                self._pid = os.getpid()
                name = f"inf-middleware-ledger-{self._path.name}"
                self._thread = threading.Thread(target=self._work, name=name, daemon=True)
                self._thread.start()
            self._queue.put(item)

    def _work(self) -> None:
        queue = self._queue
        self._opened = False
        item: _Batch | _Job | _Stop | None = None
        while True:
            item = item or self._next(queue)
            if isinstance(item, _Stop):
                with self.using:
                    self.let_go()
                _tell(item.loop, [item.future], [None])
                return
            if isinstance(item, _Job):
                self._do(item)
                item = None
                continue
            batches, count, item = [item], len(item.items), None
            while count < BATCH_MAX and item is None:
                try:
                    item = queue.get_nowait()
                except Empty:
                    break
                if isinstance(item, _Batch):
                    batches.append(item)
                    count += len(item.items)
                    item = None
            self._commit(batches, count)
            # A future that failed has its error, and that the frames of those who wait for it.
            del batches

    def _next(self, queue: "SimpleQueue[_Batch | _Job | _Stop]") -> _Batch | _Job | _Stop:
        while True:
            now = time.monotonic()
            with self.using:
                # Once it was opened it is opened again: a fork or a failure may have closed it.
                if self._opened and now >= self._next_beat:
                    self._next_beat = now + self._beat_s
                    try:
                        transact(self._connection(), self._heart.beat())
                    except Exception as error:  # also one that nobody foresaw
                        self._heart.missed()
                        _log.warning("the ledger's heartbeat failed: %s", self._failed(error))
                    else:
                        self._heart.beaten()
            with contextlib.suppress(Empty):
                return queue.get(timeout=max(self._next_beat - now, 0) or self._beat_s)

    def _do(self, job: _Job) -> None:
        outcome: Outcome
        with self.using:
            try:
                outcome = job.work(self._connection())
            except Exception as error:  # whatever it is: the thread lives on, for the settlements
                outcome = self._failed(error)
        _tell(job.loop, [job.future], [outcome])

    def _commit(self, batches: list[_Batch], count: int) -> None:
        with self.using:
            outcomes = self._write([item for batch in batches for item in batch.items])
        with self._lock:
            self._pending -= count
        start = 0
        for batch in batches:
            end = start + len(batch.items)
            changed = self._changed.pop(batch.loop, None)
            _tell(batch.loop, batch.futures, outcomes[start:end], changed)
            start = end

    def _write(self, items: Sequence[Item]) -> list[Outcome]:
        try:
            outcomes = transact_all(self._connection(), items)
        except LedgerUnavailable as error:
            return [error] * len(items)
        except (apsw.ConstraintError, OverflowError) as error:
            if len(items) > 1:
                return [self._write([item])[0] for item in items]
            return [self._failed(error)]
        except Exception as error:  # whatever it is: those who wait are told, the thread lives on
            if not isinstance(error, apsw.Error):
                _log.exception("a batch of %d failed in an unforeseen way", len(items))
                self.let_go()
            return [self._failed(error)] * len(items)
        self.commits += 1
        self.generation += 1
        return outcomes

    def _failed(self, error: Exception) -> LedgerUnavailable:
        if isinstance(error, LedgerUnavailable):
            return error
        if isinstance(error, FATAL):
            self.let_go()
        failure = LedgerUnavailable(f"the ledger {self._path} failed: {error}")
        failure.__cause__ = error
        return failure

    def _connection(self) -> apsw.Connection:
        if self._db is None:
            self._db = connect(self._path)
            self._opened = True
        else:
            check_name(self._db, self._path)
        return self._db

    def begin_anew(self) -> None:
        """Make the lock anew, which another thread of the parent may have held."""
        super().begin_anew()
        self._lock = threading.Lock()

    def let_go(self) -> None:
        """Close the file."""
        if self._db is not None:
            db, self._db = self._db, None
            # What was committed is durable; a checkpoint comes with the next opening.
            with contextlib.suppress(apsw.Error):
                db.close()


def _tell(
    loop: asyncio.AbstractEventLoop,
    futures: Sequence[asyncio.Future[Any]],
    outcomes: Sequence[Outcome],
    changed: asyncio.Event | None = None,
) -> None:
    def tell() -> None:
        for future, outcome in zip(futures, outcomes, strict=True):
            if future.done():  # its waiter was cancelled; the settlement stands all the same
                continue
            if isinstance(outcome, MiddlewareError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
        if changed is not None:
            changed.set()

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(tell)
