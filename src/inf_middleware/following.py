"""Files that an operator edits while the server runs: looked at often, taken over whole.

While requests come, a timer of their event loop looks, and no request waits for it; it ends by
itself a turn after the last. The first request after a rest waits for one look, so that what was
changed meanwhile holds for it.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeAlias

from inf_middleware.domain.errors import ConfigError
from inf_middleware.files import Stamp, TableFile, stamp_of

_log = logging.getLogger("inf_middleware.settings")

# Soon for an operator who has just saved a file, and nothing for a server: one stat per file.
LOOK_EVERY_S = 5.0

# A file system that hangs must not stop requests: they go on with what was right.
LOOK_TIMEOUT_S = 1.0

AnyFile: TypeAlias = TableFile[Any]

# What the files would mean, by file; those that are absent stay as they are.
Read: TypeAlias = Mapping[AnyFile, Any]


class Following:
    """Looks whether files have changed, and takes over those that hold.

    `check` raises ConfigError where values do not go together; `taken` is told after a change.
    A file that is broken is reported once, and what it said before stays. `clock` gives seconds.
    """

    def __init__(
        self,
        files: Sequence[AnyFile],
        *,
        check: Callable[[Read], None],
        taken: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._files = tuple(dict.fromkeys(files))
        self._check = check
        self._taken = taken
        self._clock = clock
        self._looked_at: float | None = None  # the files were read at construction, long ago or not
        self._seen: tuple[Stamp, ...] = tuple(file.stamp for file in self._files)
        self._told: set[str] = set()
        self._of_loops: dict[asyncio.AbstractEventLoop, _OfLoop] = {}

    @property
    def follows(self) -> bool:
        """Whether there is any file to look at."""
        return bool(self._files)

    def touch(self) -> Awaitable[None] | None:
        """Tell that a request has come; return what it must wait for, if anything."""
        if not self._files:
            return None
        loop = asyncio.get_running_loop()
        of_loop = self._of_loops.get(loop)
        if of_loop is None:
            for ended in [one for one in self._of_loops if one.is_closed()]:
                del self._of_loops[ended]
            of_loop = self._of_loops[loop] = _OfLoop()
            of_loop.timer = loop.call_later(LOOK_EVERY_S, self._look_if_used, loop, of_loop)
            if self._looked_at is None or self._clock() - self._looked_at >= LOOK_EVERY_S:
                self._start(loop, of_loop)
        of_loop.is_idle = False
        first = of_loop.first
        return None if first is None or first.done() else _waited_for(first)

    async def look(self) -> None:
        """Look at all files, and take over what has changed and holds."""
        self._looked_at = self._clock()
        stamps = await asyncio.to_thread(self._stamps)
        if stamps == self._seen:
            return
        self._seen = stamps  # noted first: a mistake is told once
        errors: list[str] = []
        read: dict[AnyFile, Any] = {}
        for file, stamp in zip(self._files, stamps, strict=True):
            if stamp == file.stamp:
                continue
            try:
                read[file] = await asyncio.to_thread(file.read)
            except Exception as error:  # whatever is wrong with a file, what was right goes on
                errors.append(str(error))
        if await asyncio.to_thread(self._stamps) != stamps:
            self._seen = ()  # somebody is writing: the next look will see all of it
            return
        chosen = self._that_go_together(read, errors)
        for file in chosen:
            file.value = read[file]
            file.stamp = stamps[self._files.index(file)]
        for told in dict.fromkeys(errors):  # a file may be followed for several of its tables
            if told not in self._told:
                _log.error("a change is not taken over, what was in force stays: %s", told)
        self._told = set(errors)
        if chosen:
            self._taken()
            _log.info("read anew: %s", ", ".join(file.source for file in chosen))

    async def aclose(self) -> None:
        """Stop looking, on the running event loop."""
        of_loop = self._of_loops.pop(asyncio.get_running_loop(), None)
        if of_loop is None:
            return
        if of_loop.timer is not None:
            of_loop.timer.cancel()
        if of_loop.task is not None and not of_loop.task.done():
            of_loop.task.cancel()
            await asyncio.wait([of_loop.task])

    def _stamps(self) -> tuple[Stamp, ...]:
        return tuple(stamp_of(file.path) for file in self._files)

    def _that_go_together(self, read: Read, errors: list[str]) -> tuple[AnyFile, ...]:
        """Return the most files that may be taken over at once; what others lack is told."""
        for count in range(len(read), 0, -1):
            for chosen in combinations(read, count):
                try:
                    self._check({file: read[file] for file in chosen})
                except ConfigError as error:
                    if count == len(read):
                        errors.append(str(error))
                else:
                    return chosen
        return ()

    def _look_if_used(self, loop: asyncio.AbstractEventLoop, of_loop: "_OfLoop") -> None:
        of_loop.timer = None
        if of_loop.is_idle:
            del self._of_loops[loop]
            return
        of_loop.is_idle = True
        of_loop.timer = loop.call_later(LOOK_EVERY_S, self._look_if_used, loop, of_loop)
        if of_loop.task is None or of_loop.task.done():  # one that hangs is not asked again
            of_loop.task = self._looking(loop)

    def _start(self, loop: asyncio.AbstractEventLoop, of_loop: "_OfLoop") -> None:
        of_loop.first = of_loop.task = self._looking(loop)

    def _looking(self, loop: asyncio.AbstractEventLoop) -> asyncio.Task[None]:
        return loop.create_task(self.look(), name="inf-middleware-files")


class _OfLoop:
    """The timer of one event loop; `is_idle`: no request has come since it fell due last.

    `first` is the look that requests wait for, after a rest.
    """

    __slots__ = ("first", "is_idle", "task", "timer")

    def __init__(self) -> None:
        self.is_idle = False
        self.first: asyncio.Task[None] | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None


async def _waited_for(look: asyncio.Task[None]) -> None:
    await asyncio.wait([look], timeout=LOOK_TIMEOUT_S)  # which does not cancel it
