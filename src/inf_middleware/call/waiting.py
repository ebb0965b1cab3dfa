"""Waiting for one's turn in this process, instead of being refused.

Within an account first come is first served: who comes while others of the account wait goes to
the end of their line, and only the first of a line asks the store, so a small request never passes
a large one. Where the process itself is full, the first of each line wait for a place in the order
in which they got there, so accounts take turns. Everything is bounded, and a wait is given up when
its client leaves. Who waits on one event loop of the process is woken by what ends on another.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import TypeAlias

from starlette.types import Message

from inf_middleware.call.ahead import Ahead, ClientGone
from inf_middleware.call.waking import Bell, Turn, where_it_waits
from inf_middleware.domain.limits import Admission, Refusal

Admit: TypeAlias = Callable[[], Awaitable[Admission | Refusal]]

# Requests that may wait in a process: each holds its body in memory and its client's patience.
WAITING_MAX = 1_000

# An account that is refused for what another process holds is tried again at least so often.
RETRY_S = 1.0


class Full(Exception):  # noqa: N818 - an answer, not a failure
    """This process serves as many requests as it may."""


class Places:
    """The requests that this process may serve at a time; None: any number."""

    def __init__(self, most: int | None) -> None:
        self._most = most
        self._taken = 0
        self._waiting: deque[Turn] = deque()
        self._lock = threading.Lock()  # nothing waits under it

    def try_take(self) -> bool:
        """Take a place, unless there is none or others wait for one."""
        if self._most is None:
            self._taken += 1
            return True
        with self._lock:
            return self._take_free(self._most)

    def take_anyway(self) -> None:
        """Take a place, free or not."""
        with self._lock:
            self._taken += 1

    async def take(self) -> None:
        """Wait for a place, first come first served."""
        if self._most is None:
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        with self._lock:
            if self._take_free(self._most):
                return
            self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give()  # it was handed over in the same moment
            else:
                self._leave(turn)
            raise

    def give(self) -> None:
        """Give a place back, to who waits longest."""
        if self._most is None:
            self._taken -= 1
            return
        while (turn := self._longest()) is not None:
            if turn.done():  # given up
                continue
            if where_it_waits(turn, self._hand_over):
                return

    def _take_free(self, most: int) -> bool:
        if self._taken >= most or self._waiting:
            return False
        self._taken += 1
        return True

    def _leave(self, turn: Turn) -> None:
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)

    def _longest(self) -> Turn | None:
        """Return who waits longest; where nobody does, a place is free from now on."""
        with self._lock:
            if self._waiting:
                return self._waiting.popleft()
            self._taken -= 1
            return None

    def _hand_over(self, turn: Turn) -> None:
        if turn.done():  # given up while it was on its way from another event loop
            self.give()
        else:
            turn.set_result(None)


class _Line:
    """Those of one account who wait; `stirred` is rung when something of the account ended."""

    def __init__(self) -> None:
        self.turns: deque[Bell] = deque()
        self.stirred = Bell()


class Waiting:
    """Admits in turn; `max_wait_s` 0 refuses at once."""

    def __init__(self, *, max_in_flight: int | None, max_wait_s: float) -> None:
        self.places = Places(max_in_flight)
        self._max_wait_s = max_wait_s
        self._lines: dict[str, _Line] = {}
        self._waiting = 0
        self._lock = threading.Lock()  # nothing waits under it

    async def admit(
        self,
        account_id: str,
        admit: Admit,
        ahead: Ahead,
        refusal: Refusal | None,
    ) -> Admission | Refusal:
        """Take a place in this process and an admission by `admit`, waiting where that is asked.

        For who found no place, or was given `refusal` in one. A refusal leaves no place taken.

        Raises:
            Full: There is no place, and none came free in time.
            ClientGone: The client left while it waited.
        """
        is_full = self._waiting >= WAITING_MAX
        if is_full or not _helps(refusal, self._max_wait_s):
            return _refused(refusal)
        turn = Bell()
        line = self._join(account_id, turn)
        try:
            return await self._in_line(line, turn, admit, ahead, refusal)
        finally:
            self._leave(account_id, line, turn)

    def try_place(self, account_id: str) -> bool:
        """Take a place in this process, unless there is none or others are before the account."""
        return account_id not in self._lines and self.places.try_take()

    def ended(self, account_id: str) -> None:
        """Give a place back, and tell those who wait that something of the account has ended."""
        self.places.give()
        line = self._lines.get(account_id)
        if line is not None:
            line.stirred.ring()

    def _join(self, account_id: str, turn: Bell) -> _Line:
        with self._lock:
            line = self._lines.setdefault(account_id, _Line())
            line.turns.append(turn)
            line.turns[0].ring()
            self._waiting += 1
        return line

    def _leave(self, account_id: str, line: _Line, turn: Bell) -> None:
        with self._lock:
            self._waiting -= 1
            line.turns.remove(turn)
            if line.turns:
                line.turns[0].ring()
            else:
                del self._lines[account_id]

    async def _try(self, admit: Admit) -> Admission | Refusal:
        try:
            answer = await admit()
        except BaseException:
            self.places.give()
            raise
        if isinstance(answer, Refusal):
            self.places.give()
        return answer

    async def _in_line(
        self,
        line: _Line,
        turn: Bell,
        admit: Admit,
        ahead: Ahead,
        answer: Refusal | None,
    ) -> Admission | Refusal:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._max_wait_s
        # Who waits in vain asks once all the same, so that it is told of its own limit. All that
        # came before have waited as long: it passes none of them.
        asks = not await _unless_gone(turn.heard, ahead, until)
        while True:
            if answer is not None and not asks:
                left_s = until - loop.time()
                if not _helps(answer, left_s):
                    return answer
                pause_s = min(answer.retry_after_s, RETRY_S, left_s)
                await _unless_gone(line.stirred.heard, ahead, loop.time() + pause_s)
            line.stirred.still()
            if not await _unless_gone(self.places.take, ahead, until, self.places.give):
                return _refused(answer)
            tried = await self._try(admit)
            if isinstance(tried, Admission):
                return tried
            answer, asks = tried, False


def _helps(refusal: Refusal | None, left_s: float) -> bool:
    # Requests never come back before their time; tokens do, and slots, and places.
    if refusal is not None and refusal.code == "requests_limit_exceeded":
        return refusal.retry_after_s <= left_s
    return left_s > 0


def _refused(refusal: Refusal | None) -> Refusal:
    if refusal is None:
        raise Full
    return refusal


async def _unless_gone(
    step: Callable[[], Coroutine[object, object, object]],
    ahead: Ahead,
    until: float,
    undo: Callable[[], None] | None = None,
) -> bool:
    """Await a step until a moment of the loop's clock; False where it was not done by then.

    `undo` takes back a step that was done in the moment in which this was cancelled.
    """
    loop = asyncio.get_running_loop()
    message = ahead.look()
    # What is ahead may be the body, which nobody has read: then its client is not seen to leave.
    watched = [] if _is_body(message) else [message]
    task = loop.create_task(step())  # after what may raise: nobody would take its place back
    try:
        await asyncio.wait(
            [task, *watched],
            timeout=max(until - loop.time(), 0),
            return_when=asyncio.FIRST_COMPLETED,
        )
    except asyncio.CancelledError:
        if not task.cancel() and undo is not None:
            undo()
        raise
    if task.done():
        return True
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        return True
    if message.done() and not _is_body(message):
        raise ClientGone
    return False


def _is_body(message: "asyncio.Task[Message]") -> bool:
    return message.done() and message.result()["type"] != "http.disconnect"
