"""Rates, and the groups of limits that count together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias, TypedDict

from inf_middleware.domain.errors import ConfigError

Metric: TypeAlias = Literal["requests", "tokens"]

MINUTE_S = 60.0

MICROSECONDS = 1_000_000

# Far above any real limit, and small enough that sums of limits stay exact in a double (Lua).
LIMIT_MAX = 10**12

# Further rates of one metric: each is decided at each request, and takes its place in the store.
FURTHER_RATES_MAX = 8

# The longest window: what is counted must live that long in the store.
WINDOW_S_MAX = 400 * 86_400.0


class RateItem(Protocol):
    """A rate of the `limits` package: `limits.RateLimitItem`."""

    amount: int

    def get_expiry(self) -> int:
        """Return the length of its window in seconds."""
        ...


RateNotation: TypeAlias = str | RateItem


class ModelLimits(TypedDict, total=False):
    """Limits of a tier that are another for one model; what is not named stays the tier's.

    The requests of the model count under these limits alone, for each metric named.
    """

    concurrency: int
    requests_per_minute: int
    tokens_per_minute: int
    requests: Sequence[RateNotation]
    tokens: Sequence[RateNotation]


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` requests or tokens in any `window_s` seconds."""

    metric: Metric
    limit: int
    window_s: float
    window_us: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "window_us", round(self.window_s * MICROSECONDS))


@dataclass(frozen=True, slots=True)
class LimitGroup:
    """Limits of an account whose counters live together.

    `scope` is "" for the account's own, else the model pattern that has limits of its own.
    `concurrency` is None where this group does not limit it. Of several rates of one metric over
    one time only the tightest is kept: they have one window, which counts everything once.
    `takes_slot` is False for requests of a model whose concurrency is its own: none of the
    account's own slots is theirs.
    """

    scope: str
    concurrency: int | None
    rates: tuple[Rate, ...]
    takes_slot: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kept: dict[tuple[Metric, int], Rate] = {}
        for rate in self.rates:
            of = (rate.metric, rate.window_us)
            kept[of] = min(kept.get(of, rate), rate, key=lambda one: one.limit)
        object.__setattr__(self, "rates", tuple(kept.values()))
        object.__setattr__(self, "takes_slot", bool(self.scope) or self.concurrency is not None)


@dataclass(frozen=True, slots=True)
class Limits:
    """All that limits requests of one model, in the groups that count them.

    `tokens_max` is the most tokens one request can ever be admitted with. As many requests as may
    be in progress, with `tokens_little` each, leave half of that free.
    """

    groups: tuple[LimitGroup, ...]
    tokens_max: int = field(init=False, repr=False, compare=False)
    tokens_little: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rates = [rate for group in self.groups for rate in group.rates]
        most = min([rate.limit for rate in rates if rate.metric == "tokens"], default=LIMIT_MAX)
        slots = [group.concurrency for group in self.groups if group.concurrency is not None]
        object.__setattr__(self, "tokens_max", most)
        object.__setattr__(self, "tokens_little", most // (2 * min(slots, default=1)))


def check_limit(value: object, what: str) -> int:
    """Return a limit.

    Raises:
        ConfigError: It is not a whole number of 1 or more.
    """
    if type(value) is not int or not 1 <= value <= LIMIT_MAX:
        raise ConfigError(f"{what} is {value!r}; it must be a whole number from 1 to {LIMIT_MAX:,}")
    return value


def further_rates(metric: Metric, notations: Sequence[RateNotation], what: str) -> list[Rate]:
    """Read rates in the notation of the `limits` package ("1000/day"), or its objects.

    Raises:
        ConfigError: One does not parse, is out of range, or there are too many.
    """
    if isinstance(notations, str) or not isinstance(notations, Sequence):
        raise ConfigError(f'{what} is {notations!r}; write a list: ["1000/day"]')
    if not notations:
        return []
    if len(notations) > FURTHER_RATES_MAX:
        raise ConfigError(f"{what} has {len(notations)} rates; at most {FURTHER_RATES_MAX} can be")
    rates = []
    for notation in notations:
        item = _parsed(notation, what)
        window_s = float(item.get_expiry())
        if not 1 <= window_s <= WINDOW_S_MAX:
            raise ConfigError(f"{what} has {notation!r}; a window is 1 second to 400 days long")
        rates.append(Rate(metric, check_limit(item.amount, f"{what}: {notation!r}"), window_s))
    return rates


def _parsed(notation: RateNotation, what: str) -> RateItem:
    if not isinstance(notation, str):
        if not hasattr(notation, "amount") or not hasattr(notation, "get_expiry"):
            raise ConfigError(f'{what} has {notation!r}; write a rate such as "1000/day"')
        return notation
    import limits  # noqa: PLC0415 - 80 ms at import, needed by few

    try:
        return limits.parse(notation)
    except (TypeError, ValueError):
        raise ConfigError(f'{what} has {notation!r}; write a rate such as "1000/day"') from None


def model_group(pattern: object, given: object, what: str) -> LimitGroup:
    """Read the limits of one model.

    Raises:
        ConfigError: An unknown key, a limit that cannot hold, or none at all.
    """
    where = f"{what} for model {pattern!r}"
    if not isinstance(pattern, str) or not pattern or not pattern.isprintable():
        raise ConfigError(f'{where}: write the model\'s name, or a pattern such as "Qwen/*"')
    if not isinstance(given, Mapping) or not given:
        raise ConfigError(f"{where} is {given!r}; name a limit: {{'requests_per_minute': 10}}")
    unknown = sorted(map(str, set(given) - set(ModelLimits.__annotations__)))
    if unknown:
        known = ", ".join(ModelLimits.__annotations__)
        raise ConfigError(f"{where} has unknown {', '.join(unknown)}; known are {known}")
    concurrency = None
    if "concurrency" in given:
        concurrency = check_limit(given["concurrency"], f"concurrency of {where}")
    rates: list[Rate] = []
    metrics: tuple[Metric, ...] = ("requests", "tokens")
    for metric in metrics:
        per_minute = f"{metric}_per_minute"
        if per_minute in given:
            limit = check_limit(given[per_minute], f"{per_minute} of {where}")
            rates.append(Rate(metric, limit, MINUTE_S))
        rates += further_rates(metric, given.get(metric, ()), f"{metric} of {where}")
    return LimitGroup(pattern, concurrency, tuple(rates))


def limits_of(own: LimitGroup, model: LimitGroup) -> Limits:
    """Return what limits requests of a model that has limits of its own."""
    metrics = {rate.metric for rate in model.rates}
    kept = tuple(rate for rate in own.rates if rate.metric not in metrics)
    concurrency = own.concurrency if model.concurrency is None else None
    if not kept and concurrency is None:
        return Limits((model,))
    return Limits((LimitGroup("", concurrency, kept), model))
