"""The cache around look-ups that ask somebody: bounded, timed, and one question at a time per key.

An answer is remembered by the key's SHA-256, so it may be reused only where it depends on the key
alone. That is seen, not asked: a look-up that reads the connection (its headers, its path, anything
but `.app`, where applications keep their database) has its answer given to that request only.
"""

import asyncio
import logging
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import HTTPConnection
from starlette.types import Scope

from inf_middleware.domain.errors import AccountsUnavailable
from inf_middleware.domain.keys import digest_of, without_key
from inf_middleware.domain.tiers import Account, looked_up
from inf_middleware.ports import AccountLookup

_log = logging.getLogger("inf_middleware.accounts")

# Keys remembered, the least used forgotten first: some 20 MB of accounts.
KNOWN_MAX = 32_768

# Unknown keys remembered, apart from the others, so that a flood of random keys cannot push out a
# valid one: some 2 MB.
UNKNOWN_MAX = 8_192

# Questions in progress at once in this process, far above what a database answers in parallel;
# beyond it a key that is not remembered gets a 503.
ASKING_MAX = 1_000

# A look-up that has not answered by then has failed: the caller's own patience is not much longer.
ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the look-up said; `by_key_alone` where it did so without reading the connection."""

    found: Account | None
    by_key_alone: bool
    failed: bool = False


class CachedAccounts:
    """Remembers for `ttl_s` seconds what a look-up said of a key; 0 remembers nothing.

    While the look-up fails, what is still fresh is served; the rest is a 503.
    """

    def __init__(
        self,
        lookup: AccountLookup,
        *,
        ttl_s: float,
        known_max: int = KNOWN_MAX,
        unknown_max: int = UNKNOWN_MAX,
        asking_max: int = ASKING_MAX,
        timeout_s: float = ANSWER_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._lookup = lookup
        self._ttl_s = ttl_s
        self._asking_max = asking_max
        self._timeout_s = timeout_s
        self._clock = clock
        self._known = _Remembered(known_max)
        self._unknown = _Remembered(unknown_max)
        self._asking: dict[bytes, asyncio.Task[_Answer]] = {}
        self._reads_connections = False  # then requests do not wait for each other's answers
        self._failing = False
        self._overfull = False

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        """Return what is known of a key, asking the look-up where nothing fresh is.

        Raises:
            AccountsUnavailable: The look-up failed; the operator has been told.
        """
        if key is None or not self._ttl_s:
            return _found(await self._ask(key, connection))
        digest = digest_of(key)
        now = self._clock()
        for remembered in (self._known, self._unknown):
            entry = remembered.find(digest, now)
            if entry is not None:
                return entry[0]
        if self._reads_connections:
            return _found(await self._learn(digest, key, connection))
        asking = self._asking.get(digest)
        if asking is not None and asking.get_loop() is not asyncio.get_running_loop():
            return _found(await self._learn(digest, key, connection))  # it would wake nobody here
        task = asking or self._start(digest, key, connection)
        await asyncio.wait([task])  # which neither cancels it nor is cancelled with it
        if task.cancelled():
            raise AccountsUnavailable("the look-up gave itself up")
        answer = task.result()
        if asking is not None and not answer.by_key_alone:
            # What it said, or why it failed, is of another request.
            answer = await self._ask(key, connection)
        return _found(answer)

    def known_by_digest(self, digest: bytes) -> Account | None:
        """Return the account that is remembered of the key with this SHA-256, while it is fresh."""
        entry = self._known.find(digest, self._clock())
        return None if entry is None else entry[0]

    def _start(self, digest: bytes, key: str, connection: HTTPConnection) -> asyncio.Task[_Answer]:
        if len(self._asking) >= self._asking_max:
            if not self._overfull:
                self._overfull = True
                _log.warning(
                    "%d account look-ups are in progress at once; further ones get a 503",
                    self._asking_max,
                )
            raise AccountsUnavailable("too many look-ups are in progress")
        # A task of its own: the client who asked first may leave, the others wait on.
        task = asyncio.get_running_loop().create_task(self._learn(digest, key, connection))
        self._asking[digest] = task
        task.add_done_callback(lambda done: self._asked(digest, done))
        return task

    def _asked(self, digest: bytes, task: asyncio.Task[_Answer]) -> None:
        if self._asking.get(digest) is task:
            del self._asking[digest]

    async def _learn(self, digest: bytes, key: str, connection: HTTPConnection) -> _Answer:
        until = self._clock() + self._ttl_s  # from the question: it is no younger than that
        answer = await self._ask(key, connection)
        if not answer.by_key_alone:
            if not self._reads_connections:
                self._reads_connections = True
                _log.info(
                    "the account look-up reads the connection: its answers are of one request and"
                    " are not remembered"
                )
        elif not answer.failed:
            remembered = self._unknown if answer.found is None else self._known
            remembered.put(digest, answer.found, until)
        return answer

    async def _ask(self, key: str | None, connection: HTTPConnection) -> _Answer:
        watched = _Watched(connection.scope)
        try:
            async with asyncio.timeout(self._timeout_s):
                found = looked_up(await self._lookup(key, watched))
        except Exception:
            if not self._failing:
                self._failing = True
                told = traceback.format_exc()
                _log.error(
                    "the account look-up fails; callers who are not remembered get a 503\n%s",
                    without_key(told, key) if key else told,
                )
            return _Answer(None, by_key_alone=not watched.was_read, failed=True)
        if self._failing:
            self._failing = False
            _log.info("the account look-up works again")
        return _Answer(found, by_key_alone=not watched.was_read)


def _found(answer: _Answer) -> Account | None:
    if answer.failed:
        raise AccountsUnavailable("the look-up failed")
    return answer.found


class _Remembered:
    """Answers by digest until their time; beyond `count_max` the least used goes."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._entries: OrderedDict[bytes, tuple[Account | None, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, digest: bytes, now: float) -> tuple[Account | None, float] | None:
        entry = self._entries.get(digest)
        if entry is None:
            return None
        if entry[1] <= now:
            del self._entries[digest]
            return None
        self._entries.move_to_end(digest)
        return entry

    def put(self, digest: bytes, found: Account | None, until: float) -> None:
        self._entries[digest] = (found, until)
        self._entries.move_to_end(digest)
        if len(self._entries) > self._count_max:
            self._entries.popitem(last=False)


class _Watched(HTTPConnection):
    """A connection that notes whether anything but `.app` was read of it."""

    was_read = False

    def __init__(self, scope: Scope) -> None:
        self._watched_scope = scope

    @property
    def scope(self) -> Scope:  # type: ignore[override]  # an attribute there, read alike
        self.was_read = True
        return self._watched_scope

    @property
    def app(self) -> Any:
        return self._watched_scope["app"]
