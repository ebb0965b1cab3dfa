"""From the options of `TierLimiter` to its part of a call: store, leases, turns."""

import logging
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, NamedTuple

from inf_middleware import settings
from inf_middleware.call import workers
from inf_middleware.call.leases import Leases
from inf_middleware.call.record import Limiting
from inf_middleware.call.waiting import Waiting
from inf_middleware.domain.errors import ConfigError
from inf_middleware.observers.timed import TimedStore
from inf_middleware.ports import LimitStore, Observer
from inf_middleware.settings.variables import given_by_variables
from inf_middleware.sharing import Shared, User, identity, share
from inf_middleware.stores.memory import MemoryStore
from inf_middleware.stores.outage import OutageStore

_log = logging.getLogger("inf_middleware.limits")

ENFORCE_VARIABLE = "INF_MIDDLEWARE_ENFORCE"

_SWITCHED = {"0": False, "false": False, "no": False, "off": False}
_SWITCHED |= {"": True, "1": True, "true": True, "yes": True, "on": True}


class Built(NamedTuple):
    """What limits calls, by a store that may be shared, and how it is closed."""

    limiting: Limiting
    store: LimitStore
    aclose: Callable[[], Awaitable[None]]


def build_limiting(option: Callable[[str], Any], user: User, observer: Observer | None) -> Built:
    """Build what limits calls; `option` returns the value in force of an option. Opens nothing."""
    enforce = option("enforce") and enforces()
    if option("enforce") and not enforce:
        _log.warning("%s=%s: nobody is refused for a limit", *_said())
    shared = shared_store(option, user)
    leases = Leases(shared.thing, option("lease_s"))

    async def aclose() -> None:
        await leases.aclose()
        if shared.let_go():
            await shared.thing.aclose()

    limiting = Limiting(
        store=shared.thing if observer is None else TimedStore(shared.thing, observer),
        # Of just this kind: a store that does more in its own way is asked as every other.
        local=shared.thing if type(shared.thing) is MemoryStore and observer is None else None,
        leases=leases,
        waiting=Waiting(max_in_flight=option("max_in_flight"), max_wait_s=option("max_wait_s")),
        enforce=enforce,
    )
    return Built(limiting, shared.thing, aclose)


def enforces() -> bool:
    """Tell whether the environment lets limits be enforced: the one variable that beats an option.

    Raises:
        ConfigError: It is set to what is neither yes nor no.
    """
    variable, value = _said()
    switched = _SWITCHED.get(value.strip().lower())
    if switched is None:
        raise ConfigError(f"{variable} is {value!r}; write 0 to refuse nobody, or 1")
    return switched


def _said() -> tuple[str, str]:
    """Return the variable that says it, or that names the file which does, and what is said."""
    return given_by_variables().get("enforce") or (ENFORCE_VARIABLE, "")


def shared_store(option: Callable[[str], Any], user: User) -> Shared[LimitStore]:
    """Return the store that the options mean, shared with all of the process. Opens nothing."""
    storage, deployment, lease_s = option("storage"), option("deployment"), option("lease_s")
    if storage == settings.MEMORY:
        key: tuple[Hashable, ...] = ("store", storage, deployment, lease_s)
        return share(key, user, lambda: _memory_store(lease_s))
    if settings.is_limit_store(storage):
        return share(("store", identity(storage)), user, lambda: storage)
    from inf_middleware.stores.redis import (  # noqa: PLC0415 - 100 ms at import, for this alone
        RedisStore,
    )

    timeout_s, policy = option("storage_timeout_s"), option("on_storage_error")

    def make() -> LimitStore:
        shared = RedisStore(storage, deployment=deployment, lease_s=lease_s, timeout_s=timeout_s)
        return OutageStore(shared, MemoryStore(lease_s=lease_s), policy=policy)

    key = ("store", identity(storage), deployment, lease_s, timeout_s, policy)
    return share(key, user, make)


def _memory_store(lease_s: float) -> LimitStore:
    if workers.are_several():
        _log.warning(
            "limits are counted in the memory of each worker process, so that an account gets them"
            " once per worker; to share them, give TierLimiter"
            ' storage="redis://localhost:6379"'
        )
    return MemoryStore(lease_s=lease_s)
