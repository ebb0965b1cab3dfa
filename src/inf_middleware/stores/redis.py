"""The limits of any number of processes, on one Redis: a script per step, on the server's clock."""

import hashlib
import logging
import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from msgspec.structs import replace

from inf_middleware.domain.limits import (
    Admission,
    Ask,
    GroupReading,
    Held,
    Reading,
    Refusal,
    answer_of,
    standings_of,
)
from inf_middleware.domain.rates import MICROSECONDS, LimitGroup, Metric
from inf_middleware.stores.pipelines import Call
from inf_middleware.stores.scripts import Scripts, load_script, text_of

_log = logging.getLogger("inf_middleware.limits")

# In every key: what is written in another form than this one's shall not be read by this one.
_FORM = "inf1"

# Names of keys that are kept made up, of the accounts that come most: some 300 bytes each.
KEYS_KEPT = 4_096

# What a renewal tells of a call: its id, the tokens used so far. Those of an account are one
# argument: clients take half of a renewal's time for arguments of their own.
_RENEWAL = struct.Struct("<8sQ")

_METRICS: tuple[Metric, ...] = ("requests", "tokens")


class ShownWindow(NamedTuple):
    """How one window of an account stands, for an operator."""

    metric: Metric
    window_s: float
    used: int
    reset_s: float


class ShownGroup(NamedTuple):
    """How one group of an account's limits stands, for an operator."""

    scope: str
    running: int
    lost: int
    windows: tuple[ShownWindow, ...]


class RedisStore:
    """Decides admission over all limits of an account in one round trip.

    `storage` is a URI of the Redis or Valkey family, as `limits` takes them, or such a storage
    object of `limits.aio`; `timeout_s` is the deadline of each command. Account ids are hashed in
    keys, and all keys of an account are in one hash slot. `workers` is how many processes of the
    deployment were seen at the last renewal. `clock` is Lua that defines another `clock()` than
    the server's own.

    Raises:
        ConfigError: Another kind of storage.
    """

    def __init__(
        self,
        storage: Any,
        *,
        deployment: str = "default",
        lease_s: float = 30.0,
        timeout_s: float,
        clock: str | None = None,
    ) -> None:
        self.workers = 1
        self._scripts = Scripts(storage, timeout_s=timeout_s)
        self._prefix = f"{_FORM}:{quote(deployment, safe='')}"
        self._lease_us = round(lease_s * MICROSECONDS)
        self._admit, self._renew, self._settle, self._workers, self._show, self._release = (
            load_script(name, clock)
            for name in ("admit", "renew", "settle", "workers", "show", "release")
        )
        self._process = (0, "")
        self._key_of = lru_cache(KEYS_KEPT)(self._make_key)

    async def admit(self, ask: Ask) -> Admission | Refusal:
        """Take a slot, a request and a reservation of tokens: all, or nothing at all.

        Raises:
            LimitsUnavailable: No answer; it may have been taken all the same, until settled.
        """
        arguments: list[Any] = [_id8(ask.call_id), self._lease_us, ask.tokens, int(ask.enforce)]
        for group in ask.groups:
            arguments += (group.concurrency or 0, len(group.rates))
            for rate in group.rates:
                metric = 1 if rate.metric == "requests" else 2
                arguments += (metric, rate.limit, rate.window_us)
        keys = self._keys(ask)
        reply = await self._scripts.run(Call(self._admit, keys, arguments))
        if reply[-1]:
            _log.warning(
                "the key %s in the limits' storage held what is not ours: it was replaced, and"
                " what its account had used of its limits is forgotten",
                keys[reply[-1] - 1],
            )
        readings = _readings(ask.groups, reply)
        if reply[0] == 1:
            return Admission(ask, standings_of(ask.groups, readings))
        answer = answer_of(ask, readings)
        if isinstance(answer, Admission) and answer.would_refuse is not None:
            # It was taken: what is read includes it.
            before = answer.would_refuse.used - answer.would_refuse.requested
            return replace(answer, would_refuse=replace(answer.would_refuse, used=before))
        return answer

    async def renew(self, held: Sequence[Held]) -> frozenset[str]:
        """Lengthen the leases of running calls; return the ids of those that were lost.

        Also tells the other processes that this one lives.

        Raises:
            LimitsUnavailable: No answer; some may have been renewed.
        """
        together: dict[tuple[str, ...], list[Held]] = {}  # by their keys
        for one in held:
            together.setdefault(self._keys(one.admission.ask), []).append(one)
        calls = [Call(self._workers, (f"{self._prefix}:workers",), self._alive())]
        for keys, ones in together.items():
            told = [_RENEWAL.pack(_id8(one.admission.ask.call_id), one.used) for one in ones]
            calls.append(Call(self._renew, keys, (self._lease_us, b"".join(told))))
        self.workers, *replies = await self._scripts.run_all(calls)
        return frozenset(
            one.admission.call_id
            for ones, reply in zip(together.values(), replies, strict=True)
            for one, is_held in zip(ones, text_of(reply), strict=True)
            if is_held == "0"
        )

    async def settle(self, admission: Admission, tokens: int | None) -> None:
        """Put the tokens really used in the place of the reservation, and free the slot; once.

        Raises:
            LimitsUnavailable: No answer; to be tried again.
        """
        used = -1 if tokens is None else tokens
        arguments = (_id8(admission.call_id), self._lease_us, used)
        await self._scripts.run(Call(self._settle, self._keys(admission.ask), arguments))

    async def ping(self) -> None:
        """See whether the storage answers, and tell the other processes that this one lives.

        Raises:
            LimitsUnavailable: It does not.
        """
        await self.renew(())

    async def read(self, account_id: str, groups: Sequence[LimitGroup]) -> list[GroupReading]:
        """Return how groups of an account's limits stand now; changes nothing.

        Raises:
            LimitsUnavailable: No answer.
        """
        keys = self._keys_of(account_id, groups)
        replies = await self._scripts.run_all([Call(self._show, (key,), ()) for key in keys])
        return [_as_shown(*one) for one in zip(groups, replies, strict=True)]

    async def show(self, account_id: str) -> list[ShownGroup]:
        """Return how all limits of an account stand; looks at all keys."""
        shown = []
        for scope, key in await self._groups_of(account_id):
            running, lost, *rest = await self._scripts.run(Call(self._show, (key,), ()))
            windows = tuple(
                ShownWindow(metric, window_us / MICROSECONDS, used, reset_us / MICROSECONDS)
                for metric, window_us, used, reset_us in _windows(rest)
            )
            shown.append(ShownGroup(scope, running, lost, windows))
        return shown

    async def release(self, account_id: str) -> int:
        """End all leases of an account now, each with what it is known to have used; count them.

        Requests that still run go on, without a slot.
        """
        groups = await self._groups_of(account_id)
        calls = [Call(self._release, (key,), (self._lease_us,)) for _, key in groups]
        return max([await self._scripts.run(call) for call in calls], default=0)

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._scripts.aclose()

    def _keys(self, ask: Ask) -> tuple[str, ...]:
        return self._keys_of(ask.account_id, ask.groups)

    def _keys_of(self, account_id: str, groups: Sequence[LimitGroup]) -> tuple[str, ...]:
        return tuple([self._key_of(account_id, group.scope) for group in groups])

    def _make_key(self, account_id: str, scope: str) -> str:
        return f"{self._account(account_id)}:{quote(scope, safe='')}"

    def _account(self, account_id: str) -> str:
        name = hashlib.blake2b(account_id.encode("utf-8", "replace"), digest_size=16).hexdigest()
        return f"{self._prefix}:{{{name}}}"

    async def _groups_of(self, account_id: str) -> list[tuple[str, str]]:
        account = self._account(account_id)
        keys = await self._scripts.keys(f"{account}:*")
        return sorted((unquote(key.removeprefix(f"{account}:")), key) for key in keys)

    def _alive(self) -> tuple[str, int]:
        if self._process[0] != os.getpid():
            self._process = (os.getpid(), os.urandom(8).hex())
        return self._process[1], self._lease_us


def _id8(call_id: str) -> bytes:
    return hashlib.blake2b(call_id.encode("utf-8", "replace"), digest_size=8).digest()


def _readings(groups: Sequence[LimitGroup], reply: Sequence[int]) -> list[GroupReading]:
    readings = []
    at = 1
    for group in groups:
        running, is_full = reply[at], bool(reply[at + 1])
        at += 2
        rates = []
        for _ in group.rates:
            rates.append(Reading(*reply[at : at + 3]))
            at += 3
        readings.append(GroupReading(running, is_full, rates))
    return readings


def _windows(shown: Sequence[int]) -> list[tuple[Metric, int, int, int]]:
    return [
        (_METRICS[shown[at] - 1], shown[at + 1], shown[at + 2], shown[at + 3])
        for at in range(0, len(shown), 4)
    ]


def _as_shown(group: LimitGroup, reply: Sequence[int]) -> GroupReading:
    running, _, *rest = reply
    windows = {(metric, window): (used, reset) for metric, window, used, reset in _windows(rest)}
    rates = []
    for rate in group.rates:
        used, reset_us = windows.get((rate.metric, rate.window_us), (0, 0))
        rates.append(Reading(used, reset_us, 0))
    is_full = group.concurrency is not None and running >= group.concurrency
    return GroupReading(running, is_full, rates)
