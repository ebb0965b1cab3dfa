"""The way of steps to a storage of `limits` and back, for one event loop of one process.

What is asked in one turn of the loop leaves as one command, which runs one script with a step for
each, and comes back as one reply: a fraction of what commands of their own cost, here and at the
server. What is asked while `IN_FLIGHT_MAX` of those are under way goes with the next. Each has a
deadline. Where a server does not know the script (`NOSCRIPT`, after a restart or a failover) it is
sent whole. In a Cluster each step is a command of its own: accounts live on different nodes; and
so it is behind an address that hides such nodes.

Whatever a client raises, the storage did not do its work: clients let errors of many families
through (that of a Cluster whose nodes are all away is none of redis-py's `RedisError`), and who
asks must be answered by the policy for outages, whichever it is.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, NamedTuple

from inf_middleware.domain.errors import LimitsUnavailable

_log = logging.getLogger("inf_middleware.limits")

# What a lost connection looks like: redis-py's client of a Cluster closes connections in others'
# hands, too, and who is about to write then finds None in the place of the stream.
_LOST = frozenset({"ConnectionError", "AttributeError"})

# Both clients name their errors so; by name, since only one of them may be installed.
_NO_SCRIPT, _CROSS_SLOT = "NoScriptError", "ClusterCrossSlotError"

# Steps that one command carries: a few milliseconds of the server's time.
PIPELINE_MAX = 100

# So many commands, full, are some 40 ms of the server's time: far below any deadline. One alone
# carries 100 steps each round trip, which is more than a process can serve.
IN_FLIGHT_MAX = 8

# The same of a Cluster's commands: below the 100 connections that redis-py's pool holds at most.
COMMANDS_IN_FLIGHT_MAX = 64

# A deadline that the loop sees later than this was missed by the loop, not by the server; it then
# has so long to read what has come.
STALL_S = 0.01
STALL_GRACE_S = 0.05


class Script(NamedTuple):
    """A Lua script and the name by which a server knows it."""

    text: str
    sha: str


class Call(NamedTuple):
    """One step: the keys that it works on, and what it is given, as run.lua reads it."""

    keys: Sequence[bytes]
    given: bytes


class _Asked(NamedTuple):
    """Steps that go together, and who waits for their replies."""

    calls: Sequence[Call]
    answer: "asyncio.Future[Sequence[str]]"


class Pipelines:
    """Runs the steps of a script on a storage, from the loop that it was made for."""

    def __init__(
        self, storage: Any, script: Script, loop: asyncio.AbstractEventLoop, *, timeout_s: float
    ) -> None:
        self.pid = os.getpid()
        self.storage = storage
        self._script = script
        self._loop = loop
        self._timeout_s = timeout_s
        self._is_cluster = type(storage).MODE == "CLUSTER"
        self.calls_max, self._in_flight_max = PIPELINE_MAX, IN_FLIGHT_MAX
        if self._is_cluster:
            self._go_alone()
        # Each belongs to a call that is open, or to the one renewal of all.
        self._waiting: deque[_Asked] = deque()
        self._sending: set[asyncio.Task[None]] = set()
        self._is_leaving = False  # a task has been made that takes what waits, and has not begun

    def ask(self, calls: Sequence[Call]) -> "asyncio.Future[Sequence[str]]":
        """Run at most `calls_max` steps; the future has their replies.

        It raises LimitsUnavailable where no answer comes within the deadline, or an error does.
        """
        assert len(calls) <= self.calls_max
        answer: asyncio.Future[Sequence[str]] = self._loop.create_future()
        self._waiting.append(_Asked(calls, answer))
        self._leave()
        return answer

    def _go_alone(self) -> None:
        self.calls_max, self._in_flight_max = 1, COMMANDS_IN_FLIGHT_MAX

    async def end(self) -> None:
        """Return when nothing is under way any more."""
        while self._sending:
            await asyncio.wait(self._sending)

    def _leave(self) -> None:
        if not self._is_leaving and len(self._sending) < self._in_flight_max:
            self._is_leaving = True
            self._start(self._send_waiting())

    def _start(self, sending: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(sending)
        self._sending.add(task)
        task.add_done_callback(self._sent)

    def _sent(self, task: "asyncio.Task[None]") -> None:
        self._sending.discard(task)
        if task.cancelled():  # perhaps before it has begun
            self._is_leaving = False
        if self._waiting:
            self._leave()

    async def _send_waiting(self) -> None:
        # A task begins when the turn in which it was made has ended: all who asked in it are there.
        self._is_leaving = False
        asked = self._take()
        while self._waiting and len(self._sending) < self._in_flight_max:
            self._start(self._send(self._take()))
        await self._send(asked)

    def _take(self) -> Sequence[_Asked]:
        asked: list[_Asked] = []
        room = self.calls_max
        while self._waiting and (len(self._waiting[0].calls) <= room or not asked):
            one = self._waiting.popleft()
            if not one.answer.done():  # else its call was given up
                asked.append(one)
                room -= len(one.calls)
        return asked

    async def _send(self, asked: Sequence[_Asked]) -> None:
        if not asked:
            return
        calls = asked[0].calls if len(asked) == 1 else [call for one in asked for call in one.calls]
        deadline = _Deadline(self._loop, self._timeout_s)
        try:
            replies = await self._twice(calls)
        except asyncio.CancelledError as error:
            if not deadline.is_over:  # the loop ends
                for one in asked:
                    one.answer.cancel()
                raise
            self._away(asked, f"no answer within {self._timeout_s:g} s", error)
        except Exception as error:
            self._away(asked, str(error) or type(error).__name__, error)
        else:
            start = 0
            for one in asked:
                end = start + len(one.calls)
                if not one.answer.done():
                    one.answer.set_result(replies[start:end])
                start = end
        finally:
            deadline.end()

    def _away(self, asked: Sequence[_Asked], reason: str, cause: BaseException) -> None:
        _fail(asked, reason, cause)
        # A crowd waits for no deadline but that of who is before it: where the server was found
        # away, those who wait need not find out, too.
        waiting, self._waiting = self._waiting, deque()
        _fail(waiting, f"for another just now: {reason}", cause)

    async def _twice(self, calls: Sequence[Call]) -> list[str]:
        """Run steps, and again where their connection was lost: each may be run twice.

        Servers and firewalls drop connections that idle, and a restart ends all. The pools hand out
        what came back last: the second try takes the connection that has just failed, and opens it.
        """
        try:
            return await self._run(calls)
        except Exception as error:
            if type(error).__name__ not in _LOST:
                raise
        return await self._run(calls)

    async def _run(self, calls: Sequence[Call]) -> list[str]:
        if len(calls) > self.calls_max:  # which has become less since they were asked
            return [reply for call in calls for reply in await self._run([call])]
        connection = self.storage.bridge.get_connection()
        if self._is_cluster:
            # Without its map it would ask any node: a crowd of those ends each other's connections.
            await connection.initialize()
        try:
            reply = await self._evaluate(connection, calls)
        except Exception as error:
            if len(calls) == 1 or type(error).__name__ != _CROSS_SLOT:
                raise
            # Nothing has run.
            _log.info("the limits' storage takes one account at a time: each has its own command")
            self._go_alone()
            return await self._run(calls)
        # A storage of the user's own may have decoded it.
        text: str = reply.decode() if isinstance(reply, bytes) else reply
        return text.split(";")

    async def _evaluate(self, connection: Any, calls: Sequence[Call]) -> str | bytes:
        keys = [key for call in calls for key in call.keys]
        given = [call.given for call in calls]
        reply: str | bytes
        try:
            reply = await connection.evalsha(self._script.sha, len(keys), *keys, *given)
        except Exception as error:
            if type(error).__name__ != _NO_SCRIPT:
                raise
            reply = await connection.eval(self._script.text, len(keys), *keys, *given)
        return reply


def _fail(asked: Iterable[_Asked], reason: str, cause: BaseException) -> None:
    for one in asked:
        if not one.answer.done():
            failure = LimitsUnavailable(f"the limits' storage failed: {reason}")
            failure.__cause__ = cause
            one.answer.set_exception(failure)


class _Deadline:
    """Cancels the running task after a time in which its loop could have read an answer.

    A loop that was stalled finds the answer waiting: a busy process is no dead server. A fifth of
    the cost of `asyncio.timeout`, which also serves tasks that others cancel.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self.is_over = False
        self._loop = loop
        self._task = asyncio.current_task(loop)
        self._due = loop.time() + timeout_s
        self._timer = loop.call_at(self._due, self._fall_due)

    def end(self) -> None:
        """Cancel nothing any more."""
        self._timer.cancel()

    def _fall_due(self) -> None:
        if self._loop.time() - self._due > STALL_S:
            self._timer = self._loop.call_later(STALL_GRACE_S, self._cancel)
        else:
            self._cancel()

    def _cancel(self) -> None:
        assert self._task is not None
        self.is_over = True
        self._task.cancel()
