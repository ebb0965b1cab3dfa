"""What an operator wants to know of a Redis server before it holds limits."""

import time
from typing import Any, NamedTuple

from limits.storage import storage_from_string

from inf_middleware.domain.errors import LimitsUnavailable


class Examined(NamedTuple):
    """What a server said: its version, how fast it answers, how far its clock is ahead of ours.

    `evicts`: under pressure of memory it drops keys, and with them what was counted.
    """

    version: str
    answer_s: float
    ahead_s: float
    evicts: bool


# Reads the clock as all our scripts do: so it is seen that scripts may run there.
_CLOCK = "local t = redis.call('TIME') return {tonumber(t[1]), tonumber(t[2])}"


async def examine(storage: Any) -> Examined:
    """Ask a storage; writes nothing.

    Raises:
        LimitsUnavailable: It does not answer, or not as it must.
    """
    opened = isinstance(storage, str)
    if opened:
        storage = storage_from_string(f"async+{storage}", implementation="redispy")
    connection = storage.bridge.get_connection()
    try:
        await connection.ping()
        began_s, began = time.time(), time.perf_counter()
        seconds, microseconds = await connection.eval(_CLOCK, 1, "inf-middleware:doctor")
        answer_s = time.perf_counter() - began
        ahead_s = seconds + microseconds / 1e6 - (began_s + answer_s / 2)
        info = _of_one_node(await connection.info())
    except Exception as error:  # see scripts.py
        raise LimitsUnavailable(str(error) or type(error).__name__) from error
    finally:
        if opened:
            await connection.aclose()
    version = str(info.get("valkey_version") or info.get("redis_version") or "unknown")
    evicts = bool(info.get("maxmemory")) and info.get("maxmemory_policy") != "noeviction"
    return Examined(version, answer_s, ahead_s, evicts)


def _of_one_node(info: dict[str, Any]) -> dict[str, Any]:
    """Return what one node said: a Cluster's answer has one by the name of each."""
    if "redis_version" in info:
        return info
    return next((one for one in info.values() if isinstance(one, dict)), info)
