"""The script of the Redis store, and the storage of `limits` that runs it.

Goes in: a URI of `limits`, or one of its async Redis storages. Comes out: replies.
"""

import asyncio
import hashlib
import os
from collections.abc import Iterable, Sequence
from enum import IntEnum
from importlib.resources import files
from importlib.util import find_spec
from typing import Any

from limits.storage import storage_from_string

from inf_middleware.domain.errors import ConfigError, LimitsUnavailable
from inf_middleware.domain.uris import masked
from inf_middleware.stores.pipelines import Pipelines, Reply, Script

SCHEMES = frozenset(
    family + place
    for family in ("redis", "valkey")
    for place in ("", "s", "+unix", "+cluster", "+sentinel")
)

# What must stand in the URI of more than one server, and how.
_WRITTEN = {
    "cluster": ("hosts and ports", "localhost:7000,localhost:7001"),
    "sentinel": ("hosts, ports and the service's name", "localhost:26379/mymaster"),
}

# By default redis-py's client of a Cluster closes all its connections, in use or not, at every
# fifth slot that has moved, to read the map anew. At 0 it notes where the slot went.
_OF_CLUSTERS = {"reinitialize_steps": 0}

# Each command has a deadline of ours; redis-py's own of 5 s beside it takes a third of what a
# command costs. One that a URI names holds all the same.
_OF_ALL: dict[str, Any] = {"socket_timeout": None}

# Some thirty million keys, even of a server far away.
KEYS_TIMEOUT_S = 60.0

_FOLDER = files("inf_middleware.stores") / "lua"


class Step(IntEnum):
    """What the script does for one who asks; in the order of run.lua."""

    ADMIT = 1
    RENEW = 2
    SETTLE = 3
    WORKERS = 4
    SHOW = 5
    RELEASE = 6


def load_script(clock: str | None = None) -> Script:
    """Read the script of all steps; `clock` is Lua in the place of clock.lua."""
    names = ("clock", "state", *(step.name.lower() for step in Step), "run")
    parts = [(_FOLDER / f"{name}.lua").read_text("utf-8") for name in names]
    if clock is not None:
        parts[0] = clock
    text = "\n".join(parts)
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Scripts:
    """Runs steps of the script over the connection of an async Redis storage of `limits`.

    Nothing is connected before the first run. A URI is opened once per event loop and process; a
    storage of the user's own is used as it is.

    Raises:
        ConfigError: Another kind of storage, or a URI that `limits` does not take.
    """

    def __init__(self, storage: Any, *, timeout_s: float, clock: str | None = None) -> None:
        check_storage(storage)
        self._given = storage
        self._script = load_script(clock)
        self._timeout_s = timeout_s
        self._opened: dict[asyncio.AbstractEventLoop, Pipelines] = {}

    def run(self, keys: Sequence[bytes], given: bytes) -> "asyncio.Future[Reply]":
        """Run one step, together with what else is asked in this turn of the event loop.

        Raises:
            LimitsUnavailable: From the future; no answer within the deadline, or an error.
        """
        opened = self._opened.get(asyncio.get_running_loop())
        if opened is None or opened.pid != os.getpid():
            opened = self._open()
        return opened.ask(keys, given)

    async def run_all(self, steps: Iterable[tuple[Sequence[bytes], bytes]]) -> list[Reply]:
        """Run many steps, in as few round trips as may be.

        Raises:
            LimitsUnavailable: One of them failed; others may have run.
        """
        ask = self._open().ask
        return await asyncio.gather(*[ask(keys, given) for keys, given in steps])

    async def keys(self, pattern: str) -> list[str]:
        """Return the keys that match; looks at all keys, so for an operator's questions only."""
        storage = self._open().storage
        found = storage.bridge.get_connection().scan_iter(match=pattern, count=1000)
        try:
            async with asyncio.timeout(KEYS_TIMEOUT_S):
                return [key.decode() if isinstance(key, bytes) else key async for key in found]
        except Exception as error:  # of whichever family
            reason = str(error) or f"no answer within {KEYS_TIMEOUT_S:g} s"
            raise LimitsUnavailable(f"the limits' storage failed: {reason}") from error

    async def aclose(self) -> None:
        """Close what was opened here for the running event loop."""
        opened = self._opened.pop(asyncio.get_running_loop(), None)
        if opened is None or opened.pid != os.getpid():
            return
        await opened.end()
        if isinstance(self._given, str):
            bridge = opened.storage.bridge
            await bridge.get_connection().aclose()
            for sentinel in getattr(getattr(bridge, "sentinel", None), "sentinels", ()):
                await sentinel.aclose()

    def _open(self) -> Pipelines:
        loop = asyncio.get_running_loop()
        opened = self._opened.get(loop)
        if opened is None or opened.pid != os.getpid():  # connections do not survive a fork
            for other in list(self._opened):  # other threads open theirs meanwhile
                if other.is_closed():
                    self._opened.pop(other, None)
            storage = self._given
            if isinstance(storage, str):
                options = _OF_ALL | (_OF_CLUSTERS if "+cluster://" in storage else {})
                storage = storage_from_string(
                    f"async+{storage}", implementation="redispy", **options
                )
            opened = self._opened[loop] = Pipelines(
                storage,
                self._script,
                loop,
                timeout_s=self._timeout_s,
                is_ours=isinstance(self._given, str),
            )
        return opened


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
            f"storage is {masked(storage)!r}; it must be memory:// or one of"
            f" {', '.join(f'{name}://' for name in sorted(SCHEMES))}"
        )
    shown = masked(storage)
    family, _, place = scheme.partition("+")
    if family.startswith("valkey") and find_spec("valkey") is None:
        raise ConfigError(
            f"storage is {shown!r}, which needs valkey: pip install 'inf-middleware[valkey]'"
        )
    try:
        storage_from_string(f"async+{storage}", implementation="redispy")
    except Exception as error:  # of limits, of either client, or of what they read the URI with
        # Some quote what they take for a port, and that is a password's, where an "@" is there.
        why = "" if "@" in storage else f": {error}".replace(storage, shown).partition("\n")[0]
        needed, example = _WRITTEN.get(place, ("host and port", "localhost:6379"))
        raise ConfigError(
            f"storage is {shown!r}, which limits cannot open{why};"
            f" write {needed}: {scheme}://{example}"
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
