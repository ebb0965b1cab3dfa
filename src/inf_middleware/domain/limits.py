"""What a store is asked, and its two answers."""

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import msgspec

from inf_middleware.domain.rates import MICROSECONDS, LimitGroup, Metric, Rate

LimitCode: TypeAlias = Literal[
    "concurrency_limit_exceeded", "requests_limit_exceeded", "tokens_limit_exceeded"
]

# Nobody knows when a running request ends; a second is short enough to be tried and long enough
# not to hammer (design: "What the caller sees").
CONCURRENCY_RETRY_S = 1.0

_CODES: dict[Metric, LimitCode] = {
    "requests": "requests_limit_exceeded",
    "tokens": "tokens_limit_exceeded",
}


class Ask(msgspec.Struct, frozen=True, gc=False):
    """What a call asks for: a slot, a request and a reservation of `tokens`, in all `groups`.

    With `enforce` False it is admitted in any case, and the answer says what would have refused.
    """

    call_id: str
    account_id: str
    groups: tuple[LimitGroup, ...]
    tokens: int
    enforce: bool = True


class Standing(msgspec.Struct, frozen=True, gc=False):
    """How one limit stands: `remaining` of `limit`, whole again after `reset_s` seconds."""

    limit: int
    remaining: int
    reset_s: float


# How concurrency stands where nothing limits it.
UNLIMITED = Standing(0, 0, 0.0)


class Standings(msgspec.Struct, frozen=True, gc=False):
    """How the limits of an account stand after a decision.

    Of several rates on one metric, the one with the least remaining. Concurrency has no reset: its
    `reset_s` is 0.
    """

    requests: Standing
    tokens: Standing
    concurrency: Standing


class Refusal(msgspec.Struct, frozen=True, gc=False):
    """Why a request was not admitted; nothing was taken.

    `limit`, `used` and `requested` are those of the limit named by `code`, over `window_s`
    seconds (0 for concurrency). `retry_after_s` is when this very request would fit over all
    limits, if nothing else of the account happens; for concurrency an estimate. `scope` is the
    model pattern whose own limit it is, else "".
    """

    code: LimitCode
    limit: int
    used: int
    requested: int
    window_s: float
    retry_after_s: float
    standings: Standings
    scope: str = ""


class Admission(msgspec.Struct, frozen=True, gc=False):
    """The receipt of an admitted request; renew it while the request lives, settle it once.

    `would_refuse` is what would have refused it, where nothing is enforced.
    """

    ask: Ask
    standings: Standings
    would_refuse: Refusal | None = None

    @property
    def call_id(self) -> str:
        """The id of the call that holds it."""
        return self.ask.call_id

    @property
    def account_id(self) -> str:
        """Whose limits it takes from."""
        return self.ask.account_id

    @property
    def tokens(self) -> int:
        """The tokens reserved."""
        return self.ask.tokens


class Held(NamedTuple):
    """An admission whose request still runs, and the tokens it is known to have used so far."""

    admission: Admission
    used: int


class Reading(msgspec.Struct, frozen=True, gc=False):
    """How one rate's window stands: its sum, until it is empty, until the asked would fit (µs)."""

    total: int
    reset_us: int
    wait_us: int


class GroupReading(msgspec.Struct, frozen=True):
    """How one group stands: requests in progress, whether that is full, its rates in order."""

    running: int
    is_full: bool
    rates: Sequence[Reading]


def answer_of(ask: Ask, readings: Sequence[GroupReading]) -> Admission | Refusal:
    """Turn what a store read into its answer; the store has taken what the answer says.

    `wait_us` above 0 refuses; of several that do, the longest wait names the refusal.
    """
    refusal = _refusal(ask, readings)
    if refusal is not None and ask.enforce:
        return refusal
    return Admission(ask, standings_of(ask.groups, readings), refusal)


def _refusal(ask: Ask, readings: Sequence[GroupReading]) -> Refusal | None:
    full: tuple[LimitGroup, GroupReading] | None = None
    binding: tuple[LimitGroup, Rate, Reading] | None = None
    for group, reading in zip(ask.groups, readings, strict=True):
        if reading.is_full:
            full = (group, reading)
        for rate, window in zip(group.rates, reading.rates, strict=True):
            if window.wait_us > (binding[2].wait_us if binding else 0):
                binding = (group, rate, window)
    if binding is None and full is None:
        return None
    standings = standings_of(ask.groups, readings)
    if binding is None:
        assert full is not None
        group, reading = full
        return Refusal(
            "concurrency_limit_exceeded",
            limit=group.concurrency or 0,
            used=reading.running,
            requested=1,
            window_s=0.0,
            retry_after_s=CONCURRENCY_RETRY_S,
            standings=standings,
            scope=group.scope,
        )
    group, rate, window = binding
    wait_s = window.wait_us / MICROSECONDS
    return Refusal(
        _CODES[rate.metric],
        limit=rate.limit,
        used=window.total,
        requested=1 if rate.metric == "requests" else ask.tokens,
        window_s=rate.window_s,
        retry_after_s=max(wait_s, CONCURRENCY_RETRY_S) if full else wait_s,
        standings=standings,
        scope=group.scope,
    )


def standings_of(groups: Sequence[LimitGroup], readings: Sequence[GroupReading]) -> Standings:
    """Turn readings into what the caller is told: the tightest limit of each kind."""
    requests: Standing | None = None
    tokens: Standing | None = None
    concurrency = UNLIMITED
    for group, reading in zip(groups, readings, strict=True):
        if group.concurrency is not None:
            free = max(group.concurrency - reading.running, 0)
            concurrency = Standing(group.concurrency, free, 0.0)
        for rate, window in zip(group.rates, reading.rates, strict=True):
            remaining = max(rate.limit - window.total, 0)
            known = requests if rate.metric == "requests" else tokens
            if known is not None and remaining >= known.remaining:
                continue
            standing = Standing(rate.limit, remaining, window.reset_us / MICROSECONDS)
            if rate.metric == "requests":
                requests = standing
            else:
                tokens = standing
    assert requests is not None
    assert tokens is not None
    return Standings(requests, tokens, concurrency)
