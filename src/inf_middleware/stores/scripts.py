"""The scripts of the Redis store, and the connection of `limits`' storage that runs them.

Goes in: a URI of `limits`, or one of its async Redis storages. Comes out: replies. At most
`IN_FLIGHT_MAX` commands are under way in a process, each has a deadline, and what the server does
not know (`NOSCRIPT`, after a restart or a failover) is sent again whole, in the same call.
"""

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from limits.errors import ConfigurationError
from limits.storage import storage_from_string

from inf_middleware.domain.errors import ConfigError, LimitsUnavailable

# Below the 100 connections that redis-py's pool holds at most; one round trip takes some 0.2 ms,
# so this many carry far more than a process can serve.
IN_FLIGHT_MAX = 64

# A deadline that the loop sees later than this was missed by the loop, not by the server; it then
# has so long to read what has come.
STALL_S = 0.01
STALL_GRACE_S = 0.05

# Scripts that one pipeline carries: a few milliseconds of the server's time.
PIPELINE_MAX = 100

SCHEMES = frozenset(
    family + place
    for family in ("redis", "valkey")
    for place in ("", "s", "+unix", "+cluster", "+sentinel")
)

_FOLDER = files("inf_middleware.stores") / "lua"


class Script(NamedTuple):
    """A Lua script and the name by which a server knows it."""

    text: str
    sha: str


def load_script(name: str, clock: str | None = None) -> Script:
    """Read a script with what all of them share; `clock` is Lua in the place of clock.lua."""
    parts = [(_FOLDER / f"{part}.lua").read_text("utf-8") for part in ("clock", "state", name)]
    if clock is not None:
        parts[0] = clock
    text = "\n".join(parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Call(NamedTuple):
    """One run of a script."""

    script: Script
    keys: Sequence[str]
    arguments: Sequence[Any]


class Scripts:
    """Runs scripts over the connection of an async Redis storage of `limits`.

    Nothing is connected before the first run. A URI is opened once per event loop and process; a
    storage of the user's own is used as it is.

    Raises:
        ConfigError: Another kind of storage, or a URI that `limits` does not take.
    """

    def __init__(self, storage: Any, *, timeout_s: float) -> None:
        check_storage(storage)
        self._given = storage
        self._timeout_s = timeout_s
        self._failed = 0  # how many runs have
        self._opened: dict[asyncio.AbstractEventLoop, tuple[int, Any, asyncio.Semaphore]] = {}

    async def run(self, call: Call) -> Any:
        """Run one script.

        Raises:
            LimitsUnavailable: No answer within the deadline, or an error in its place.
        """
        storage, gate = self._open()
        failed = self._failed
        async with gate:
            # A crowd waits for no deadline but that of who is before it: where one of those found
            # the server away, the others need not find out, too.
            if self._failed != failed:
                raise LimitsUnavailable("the limits' storage failed for another just now")
            try:
                async with _deadline(self._timeout_s):
                    return await _twice(storage, lambda: _run(storage, call))
            except failures(storage) as error:
                self._failed += 1
                reason = str(error) or f"no answer within {self._timeout_s:g} s"
                raise LimitsUnavailable(f"the limits' storage failed: {reason}") from error

    async def run_all(self, calls: Sequence[Call]) -> list[Any]:
        """Run many scripts: in pipelines, or side by side on a Cluster, whose pipelines take none.

        Raises:
            LimitsUnavailable: One of them failed; others may have run.
        """
        storage, _ = self._open()
        if type(storage).MODE == "CLUSTER" or len(calls) == 1:
            return await asyncio.gather(*map(self.run, calls))
        replies: list[Any] = []
        for start in range(0, len(calls), PIPELINE_MAX):
            replies += await self._run_pipeline(storage, calls[start : start + PIPELINE_MAX])
        return replies

    async def keys(self, pattern: str) -> list[str]:
        """Return the keys that match; looks at all keys, so for an operator's questions only."""
        storage, _ = self._open()
        found = storage.bridge.get_connection().scan_iter(match=pattern, count=1000)
        try:
            return [text_of(key) async for key in found]
        except failures(storage) as error:
            raise LimitsUnavailable(f"the limits' storage failed: {error}") from error

    async def aclose(self) -> None:
        """Close what was opened here for the running event loop."""
        opened = self._opened.pop(asyncio.get_running_loop(), None)
        if opened is not None and isinstance(self._given, str) and opened[0] == os.getpid():
            bridge = opened[1].bridge
            await bridge.get_connection().aclose()
            for sentinel in getattr(getattr(bridge, "sentinel", None), "sentinels", ()):
                await sentinel.aclose()

    async def _run_pipeline(self, storage: Any, calls: Sequence[Call]) -> list[Any]:
        try:
            async with _deadline(self._timeout_s):
                replies = await _twice(storage, lambda: _run_pipeline(storage, calls))
        except failures(storage) as error:
            raise LimitsUnavailable(f"the limits' storage failed: {error}") from error
        for place, reply in enumerate(replies):
            if _is_noscript(reply):
                replies[place] = await self.run(calls[place])
            elif isinstance(reply, Exception):
                raise LimitsUnavailable(f"the limits' storage failed: {reply}") from reply
        return list(replies)

    def _open(self) -> tuple[Any, asyncio.Semaphore]:
        loop = asyncio.get_running_loop()
        opened = self._opened.get(loop)
        if opened is None or opened[0] != os.getpid():  # connections do not survive a fork
            for other in [other for other in self._opened if other.is_closed()]:
                del self._opened[other]
            storage = self._given
            if isinstance(storage, str):
                storage = storage_from_string(f"async+{storage}", implementation="redispy")
            opened = self._opened[loop] = (os.getpid(), storage, asyncio.Semaphore(IN_FLIGHT_MAX))
        return opened[1], opened[2]


def check_storage(storage: Any) -> None:
    """Check what was given as a storage, without opening it.

    Raises:
        ConfigError: It cannot hold limits of many processes; names those that can.
    """
    if not isinstance(storage, str):
        _check_object(storage)
        return
    scheme, separator, _ = storage.partition("://")
    if not separator or scheme not in SCHEMES:
        raise ConfigError(
            f"storage is {_without_password(storage)!r}; it must be memory:// or one of"
            f" {', '.join(f'{name}://' for name in sorted(SCHEMES))}"
        )
    try:
        storage_from_string(f"async+{storage}", implementation="redispy")
    except (ConfigurationError, ValueError, ImportError, TypeError) as error:
        shown = _without_password(storage)
        raise ConfigError(
            f"storage is {shown!r}, which limits cannot open: {error};"
            " write host and port: redis://localhost:6379"
        ) from error


def _check_object(storage: Any) -> None:
    connection = getattr(getattr(storage, "bridge", None), "get_connection", None)
    if connection is None:
        raise ConfigError(
            f"storage is {storage!r}; give memory://, a URI such as redis://localhost:6379, or a"
            " Redis storage of limits.aio"
        )
    if not type(storage.bridge).__module__.endswith(("redispy", "valkey")):
        raise ConfigError(
            f"storage is {storage!r}, which uses another client;"
            ' make it with implementation="redispy"'
        )


def _without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    credentials, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{'…@' if at and credentials else ''}{place}"


async def _twice(storage: Any, step: Callable[[], Awaitable[Any]]) -> Any:
    """Take a step again where its connection was lost; every script may be run again.

    Servers and firewalls drop connections that idle, and a restart ends all. The pools hand out
    what came back last: the second try takes the connection that has just failed, and opens it.
    """
    try:
        return await step()
    except failures(storage) as error:
        if type(error).__name__ != "ConnectionError":
            raise
    return await step()


async def _run_pipeline(storage: Any, calls: Sequence[Call]) -> list[Any]:
    pipeline = storage.bridge.get_connection().pipeline(transaction=False)
    for script, keys, arguments in calls:
        pipeline.evalsha(script.sha, len(keys), *keys, *arguments)
    replies: list[Any] = await pipeline.execute(raise_on_error=False)
    return replies


async def _run(storage: Any, call: Call) -> Any:
    connection = storage.bridge.get_connection()
    script, keys, arguments = call
    try:
        return await connection.evalsha(script.sha, len(keys), *keys, *arguments)
    except failures(storage) as error:
        if not _is_noscript(error):
            raise
    return await connection.eval(script.text, len(keys), *keys, *arguments)


@contextlib.asynccontextmanager
async def _deadline(timeout_s: float) -> AsyncIterator[None]:
    """Raise TimeoutError after a time in which the event loop could have read an answer.

    A loop that was stalled finds the answer waiting: a busy process is no dead server.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + timeout_s

    def fall_due() -> None:
        now = loop.time()
        timeout.reschedule(now + STALL_GRACE_S if now - due > STALL_S else now)

    async with asyncio.timeout(None) as timeout:
        timer = loop.call_at(due, fall_due)
        try:
            yield
        finally:
            timer.cancel()


def _is_noscript(reply: object) -> bool:
    # Both clients name it so; by name, since only one of them may be installed.
    return type(reply).__name__ == "NoScriptError"


def failures(storage: Any) -> tuple[type[Exception], ...]:
    """Return what a storage raises where it cannot do its work."""
    own = storage.base_exceptions
    return (*(own if isinstance(own, tuple) else (own,)), OSError, TimeoutError)


def text_of(reply: Any) -> str:
    """Return a text that was answered: a storage of the user's own may have decoded it."""
    return reply.decode() if isinstance(reply, bytes) else str(reply)
