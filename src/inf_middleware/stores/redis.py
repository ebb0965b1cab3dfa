"""The limits of any number of processes, on one Redis: one script, on the server's clock."""

import hashlib
import logging
import os
from collections.abc import Awaitable, Sequence
from functools import lru_cache, partial
from struct import Struct
from typing import Any, NamedTuple, TypeAlias
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
from inf_middleware.domain.rates import LIMIT_MAX, MICROSECONDS, LimitGroup, Metric
from inf_middleware.stores.pipelines import Reply
from inf_middleware.stores.scripts import Scripts, Step

_log = logging.getLogger("inf_middleware.limits")

# In every key: what is written in another form than this one's shall not be read by this one.
_FORM = "inf1"

# Accounts whose keys and limits are kept as a script takes them, those that come most: some 700
# bytes each.
ACCOUNTS_KEPT = 4_096

_METRICS: tuple[Metric, ...] = ("requests", "tokens")

# What the steps are given, as their scripts read it: each begins with the step and its keys.
_ADMIT, _GROUP, _RATE = Struct("<BB8sQQB"), Struct("<QBB"), Struct("<BQQ")
_SETTLE = Struct("<BB8sQQB")
_LEASE = Struct("<BBQ")
_RENEWED = Struct("<8sQ")
_SHOW = bytes((Step.SHOW, 1))

# Of tokens a caller or a model may tell any number: one that no limit reaches is as good.
_TOKENS_MAX = 1_000 * LIMIT_MAX


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
        self._scripts = Scripts(storage, timeout_s=timeout_s, clock=clock)
        self._prefix = f"{_FORM}:{quote(deployment, safe='')}"
        self._lease_us = round(lease_s * MICROSECONDS)
        self._process = (0, b"")
        # Not of a method: what is dropped shall be free at once, not when a cycle is found.
        self._account_of = lru_cache(ACCOUNTS_KEPT)(partial(_Account, self._prefix))

    async def admit(self, ask: Ask) -> Admission | Refusal:
        """Take a slot, a request and a reservation of tokens: all, or nothing at all.

        Raises:
            LimitsUnavailable: No answer; it may have been taken all the same, until settled.
        """
        return self.answer(ask, await self.ask(ask))

    def ask(self, ask: Ask) -> Awaitable[Reply]:
        """Ask at once for what `admit` takes; what the awaitable gives is read by `answer`.

        Raises:
            LimitsUnavailable: From the awaitable; as `admit`.
        """
        groups, tokens = ask.groups, ask.tokens
        account = self._account_of(ask.account_id)
        prepared = account.prepared
        if prepared[0] is not groups:
            prepared = account.prepare(groups)
        _, keys, limits = prepared
        if tokens > _TOKENS_MAX:
            tokens = _TOKENS_MAX
        head = _ADMIT.pack(
            Step.ADMIT, len(keys), _id8(ask.call_id), self._lease_us, tokens, ask.enforce
        )
        return self._scripts.run(keys, head + limits)

    def answer(self, ask: Ask, told: Sequence[int]) -> Admission | Refusal:
        """Read what was told to who asked."""
        groups = ask.groups
        if told[-1]:
            _log.warning(
                "the key %s in the limits' storage held what is not ours: it was replaced, and"
                " what its account had used of its limits is forgotten",
                self._keys_of(ask.account_id, groups)[told[-1] - 1].decode(),
            )
        readings = _readings(groups, told)
        if told[0] == 1:
            return Admission(ask, standings_of(groups, readings))
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
        together: dict[tuple[str, ...], list[Held]] = {}  # by what their keys are made of
        for one in held:
            ask = one.admission.ask
            of = (ask.account_id, *[group.scope for group in ask.groups])
            together.setdefault(of, []).append(one)
        steps: list[tuple[tuple[bytes, ...], bytes]] = [
            ((f"{self._prefix}:workers".encode(),), self._alive())
        ]
        for ones in together.values():
            ask = ones[0].admission.ask
            keys = self._keys_of(ask.account_id, ask.groups)
            given = [_LEASE.pack(Step.RENEW, len(keys), self._lease_us)]
            for admission, used in ones:
                given.append(_RENEWED.pack(_id8(admission.call_id), min(used, _TOKENS_MAX)))
            steps.append((keys, b"".join(given)))
        (self.workers,), *replies = await self._scripts.run_all(steps)
        return frozenset(
            one.admission.call_id
            for ones, reply in zip(together.values(), replies, strict=True)
            for one, is_held in zip(ones, reply, strict=True)
            if not is_held
        )

    def settle(self, admission: Admission, tokens: int | None) -> Awaitable[Reply]:
        """Put the tokens really used in the place of the reservation, and free the slot; once.

        It is asked for at once; the awaitable ends when it is done.

        Raises:
            LimitsUnavailable: From the awaitable; no answer, to be tried again.
        """
        ask = admission.ask
        keys = self._keys_of(ask.account_id, ask.groups)
        used = min(tokens or 0, _TOKENS_MAX)
        head = (Step.SETTLE, len(keys), _id8(ask.call_id), self._lease_us, used, tokens is not None)
        return self._scripts.run(keys, _SETTLE.pack(*head))

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
        replies = await self._scripts.run_all([((key,), _SHOW) for key in keys])
        return [_as_shown(group, reply) for group, reply in zip(groups, replies, strict=True)]

    async def show(self, account_id: str) -> list[ShownGroup]:
        """Return how all limits of an account stand; looks at all keys."""
        shown = []
        for scope, key in await self._groups_of(account_id):
            running, lost, *rest = await self._scripts.run((key.encode(),), _SHOW)
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
        given = _LEASE.pack(Step.RELEASE, 1, self._lease_us)
        replies = [await self._scripts.run((key.encode(),), given) for _, key in groups]
        return max((held for (held,) in replies), default=0)

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._scripts.aclose()

    def _keys_of(self, account_id: str, groups: Sequence[LimitGroup]) -> tuple[bytes, ...]:
        account = self._account_of(account_id)
        prepared = account.prepared
        if prepared[0] is not groups:
            prepared = account.prepare(groups)
        return prepared[1]

    async def _groups_of(self, account_id: str) -> list[tuple[str, str]]:
        account = _account(self._prefix, account_id)
        keys = await self._scripts.keys(f"{account}:*")
        return sorted((unquote(key.removeprefix(f"{account}:")), key) for key in keys)

    def _alive(self) -> bytes:
        if self._process[0] != os.getpid():
            self._process = (os.getpid(), os.urandom(8).hex().encode())
        return _LEASE.pack(Step.WORKERS, 1, self._lease_us) + self._process[1]


# Groups of limits, and what a script takes for them: their keys, and the limits themselves.
_Prepared: TypeAlias = tuple[Sequence[LimitGroup], tuple[bytes, ...], bytes]


class _Account:
    """An account, and the limits that were asked for last: those of one hardly ever change.

    Several event loops of a process may ask at once, so what is `prepared` is replaced as a whole.
    """

    __slots__ = ("_name", "prepared")

    def __init__(self, prefix: str, account_id: str) -> None:
        self.prepared: _Prepared = ((), (), b"")
        self._name = _account(prefix, account_id)

    def prepare(self, groups: Sequence[LimitGroup]) -> _Prepared:
        """Make keys and limits of groups ready."""
        keys = tuple([f"{self._name}:{quote(one.scope, safe='')}".encode() for one in groups])
        limits = b""
        for group in groups:
            limits += _GROUP.pack(group.concurrency or 0, group.takes_slot, len(group.rates))
            for rate in group.rates:
                metric = 1 if rate.metric == "requests" else 2
                limits += _RATE.pack(metric, rate.limit, rate.window_us)
        prepared = self.prepared = (groups, keys, limits)
        return prepared


def _account(prefix: str, account_id: str) -> str:
    name = hashlib.blake2b(account_id.encode("utf-8", "replace"), digest_size=16).hexdigest()
    return f"{prefix}:{{{name}}}"


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
