"""The way of steps to a storage of `limits` and back, for one event loop of one process.

What is asked in one turn of the loop leaves as one command, which runs one script with a step for
each, and comes back as one reply: a fraction of what commands of their own cost, here and at the
server. What is asked while `IN_FLIGHT_MAX` of those are under way goes with the next. Each has a
deadline. Where a server does not know the script (`NOSCRIPT`, after a restart or a failover) it is
sent whole. In a Cluster each step is a command of its own: accounts live on different nodes; and
so it is behind an address that hides such nodes.

A single server of a URI is asked over connections of our own, made as the client makes its own: its
way around each command (its pool, its retries beside ours, its metrics) takes three times what the
command itself does. A Cluster, Sentinel and a storage of the user's own are asked as they wish.

Whatever a client raises, the storage did not do its work: clients let errors of many families
through (that of a Cluster whose nodes are all away is none of redis-py's `RedisError`), and who
asks must be answered by the policy for outages, whichever it is.
"""

import asyncio
import logging
import os
from collections import deque
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

from msgspec import json

from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.stores.connections import Connections, is_demoted

_log = logging.getLogger("inf_middleware.limits")

# What a lost connection looks like: redis-py's client of a Cluster closes connections in others'
# hands, too, and who is about to write then finds None in the place of the stream. One to a server
# that is no primary any more is as good as lost: nothing has run.
_LOST = frozenset({"ConnectionError", "AttributeError"})

# Both clients name their errors so; by name, since only one of them may be installed. While a slot
# moves, a client may be sent from node to node until it gives up (`ClusterError`, 16 times in a
# few milliseconds): nothing has run then, and a moment later it may.
_NO_SCRIPT, _CROSS_SLOT, _MOVING = "NoScriptError", "ClusterCrossSlotError", "ClusterError"

# Before what was sent around is asked again, and twice as long each time after: a slot with few
# keys moves in about so long.
MOVING_PAUSE_S = 0.01

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


# What a step returns, as run.lua tells it.
Reply: TypeAlias = list[int]

# One step: the keys that it works on, what it is given as run.lua reads it, and who waits for its
# reply. One is made for each: a plain tuple takes a sixth of the time of a named one.
_Asked: TypeAlias = "tuple[Sequence[bytes], bytes, asyncio.Future[Reply]]"

_read = json.Decoder(list[Reply]).decode


class Pipelines:
    """Runs the steps of a script on a storage, from the loop that it was made for."""

    def __init__(
        self,
        storage: Any,
        script: Script,
        loop: asyncio.AbstractEventLoop,
        *,
        timeout_s: float,
        is_ours: bool,
    ) -> None:
        self.pid = os.getpid()
        self.storage = storage
        self._script = script
        self._loop = loop
        self._timeout_s = timeout_s
        self._is_cluster = type(storage).MODE == "CLUSTER"
        self._calls_max, self._in_flight_max = PIPELINE_MAX, IN_FLIGHT_MAX
        if self._is_cluster:
            self._go_alone()
        self._connections = Connections.of(storage) if is_ours else None
        # Each belongs to a call that is open, or to the one renewal of all.
        self._waiting: deque[_Asked] = deque()
        self._sending: set[asyncio.Task[None]] = set()
        self._is_leaving = False  # a task has been made that takes what waits, and has not begun

    def ask(self, keys: Sequence[bytes], given: bytes) -> "asyncio.Future[Reply]":
        """Run one step, together with what else is asked in this turn; the future has its reply.

        It raises LimitsUnavailable where no answer comes within the deadline, or an error does.
        """
        answer: asyncio.Future[Reply] = self._loop.create_future()
        self._waiting.append((keys, given, answer))
        if not self._is_leaving:
            self._leave()
        return answer

    def _go_alone(self) -> None:
        self._calls_max, self._in_flight_max = 1, COMMANDS_IN_FLIGHT_MAX

    async def end(self) -> None:
        """Return when nothing is under way any more, and close what was opened here."""
        while self._sending:
            await asyncio.wait(self._sending)
        if self._connections is not None:
            await self._connections.aclose()

    def _leave(self) -> None:
        if len(self._sending) < self._in_flight_max:
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
        if self._waiting and not self._is_leaving:
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
        while self._waiting and len(asked) < self._calls_max:
            one = self._waiting.popleft()
            if not one[2].done():  # else its call was given up
                asked.append(one)
        return asked

    async def _send(self, asked: Sequence[_Asked]) -> None:
        if not asked:
            return
        deadline = _Deadline(self._loop, self._timeout_s)
        try:
            replies = await self._run_surely(asked, deadline)
        except asyncio.CancelledError as error:
            if not deadline.is_over:  # the loop ends
                for _, _, answer in asked:
                    answer.cancel()
                raise
            self._away(asked, f"no answer within {self._timeout_s:g} s", error)
        except Exception as error:
            self._away(asked, str(error) or type(error).__name__, error)
        else:
            for (_, _, answer), reply in zip(asked, replies, strict=True):
                if not answer.done():
                    answer.set_result(reply)
        finally:
            deadline.end()

    def _away(self, asked: Sequence[_Asked], reason: str, cause: BaseException) -> None:
        _fail(asked, reason, cause)
        # A crowd waits for no deadline but that of who is before it: where the server was found
        # away, those who wait need not find out, too.
        waiting, self._waiting = self._waiting, deque()
        _fail(waiting, f"for another just now: {reason}", cause)

    async def _run_surely(self, asked: Sequence[_Asked], deadline: "_Deadline") -> list[Reply]:
        """Run steps, once more where their connection was lost: each may run twice then.

        Servers and firewalls drop connections that idle, and a restart ends all. What came back
        last is taken first: the second try has the connection that has just failed, and opens it.
        Steps that found no node while their slot moved are tried until the deadline ends it, and
        raise what they were told last.
        """
        was_lost = False
        moving: Exception | None = None
        pause_s = MOVING_PAUSE_S
        while True:
            try:
                if moving is not None:
                    await asyncio.sleep(pause_s)
                    pause_s *= 2
                return await self._run(asked)
            except asyncio.CancelledError:
                if moving is None or not deadline.is_over:
                    raise
                raise moving from None
            except Exception as error:
                name = type(error).__name__
                if name == _MOVING:
                    moving = error.with_traceback(None)  # that would keep this frame
                elif (name in _LOST or is_demoted(error)) and not was_lost:
                    was_lost = True
                else:
                    raise

    async def _run(self, asked: Sequence[_Asked]) -> list[Reply]:
        if len(asked) > self._calls_max:  # which has become less since they were taken
            return [reply for one in asked for reply in await self._run([one])]
        keys = [key for of_one, _, _ in asked for key in of_one]
        given = [given for _, given, _ in asked]
        try:
            reply = await self._evaluate(b"EVALSHA", self._script.sha, keys, given)
        except Exception as error:
            name = type(error).__name__
            if name == _NO_SCRIPT:
                reply = await self._evaluate(b"EVAL", self._script.text, keys, given)
            elif name == _CROSS_SLOT and len(asked) > 1:
                # Nothing has run.
                _log.info("the limits' storage takes one account at a time: each has its command")
                self._go_alone()
                return await self._run(asked)
            else:
                raise
        return _read(reply)

    async def _evaluate(
        self, command: bytes, script: str, keys: list[bytes], given: list[bytes]
    ) -> str | bytes:
        reply: str | bytes  # a storage of the user's own may have decoded it
        if self._connections is not None:
            count = b"%d" % len(keys)
            reply = await self._connections.run([command, script.encode(), count, *keys, *given])
            return reply
        connection = self.storage.bridge.get_connection()
        if self._is_cluster:
            # Without its map it would ask any node: a crowd of those ends each other's connections.
            await connection.initialize()
        run = connection.evalsha if command == b"EVALSHA" else connection.eval
        reply = await run(script, len(keys), *keys, *given)
        return reply


def _fail(asked: Iterable[_Asked], reason: str, cause: BaseException) -> None:
    for _, _, answer in asked:
        if not answer.done():
            failure = LimitsUnavailable(f"the limits' storage failed: {reason}")
            failure.__cause__ = cause
            answer.set_exception(failure)


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
