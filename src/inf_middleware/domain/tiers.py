"""Levels and accounts: who may do how much."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, TypeAlias

import msgspec

from inf_middleware.domain import tables
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.money import nano_of
from inf_middleware.domain.prices import Prices

Metric: TypeAlias = Literal["requests", "tokens"]

# Far above any real limit, and small enough that sums of limits stay exact in a double (Lua).
LIMIT_MAX = 10**12


@dataclass(frozen=True, slots=True)
class Rate:
    """At most `limit` requests or tokens in any `window_s` seconds."""

    metric: Metric
    limit: int
    window_s: float


@dataclass(frozen=True, slots=True)
class Tier:
    """A named set of limits.

    `recharged_from` is the cumulative recharge (¥) from which an account has this level.
    `requests` and `tokens` are further rates in the notation of the `limits` package, such as
    `requests=["1000/day"]`.

    Raises:
        ConfigError: A limit that is not a whole number of 1 or more, or a rate that does not parse.
    """

    name: str
    concurrency: int
    requests_per_minute: int
    tokens_per_minute: int
    recharged_from: Decimal | str | int = "0"
    requests: Sequence[str] = ()
    tokens: Sequence[str] = ()
    recharged_from_nano: int = field(init=False, repr=False)
    rates: tuple[Rate, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigError(f"tier name is {self.name!r}; a tier needs a name")
        for limit in ("concurrency", "requests_per_minute", "tokens_per_minute"):
            value = getattr(self, limit)
            if type(value) is not int or not 1 <= value <= LIMIT_MAX:
                raise ConfigError(
                    f"{limit} of tier {self.name} is {value!r};"
                    f" it must be a whole number from 1 to {LIMIT_MAX:,}"
                )
        rates = (
            Rate("requests", self.requests_per_minute, 60.0),
            Rate("tokens", self.tokens_per_minute, 60.0),
            *_further(self.name, "requests", self.requests),
            *_further(self.name, "tokens", self.tokens),
        )
        recharged = nano_of(self.recharged_from, f"recharged_from of tier {self.name}")
        object.__setattr__(self, "recharged_from_nano", recharged)
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "requests", tuple(self.requests))
        object.__setattr__(self, "tokens", tuple(self.tokens))

    @property
    def tokens_max(self) -> int:
        """The most tokens one request can ever be admitted with."""
        return min(rate.limit for rate in self.rates if rate.metric == "tokens")


def _further(tier: str, metric: Metric, notations: Sequence[str]) -> list[Rate]:
    if isinstance(notations, str):
        raise ConfigError(f'{metric} of tier {tier} is {notations!r}; write a list: ["1000/day"]')
    if not notations:
        return []
    import limits  # noqa: PLC0415 - 80 ms at import, needed by few

    rates = []
    for notation in notations:
        try:
            item = limits.parse(notation)
        except (TypeError, ValueError):
            raise ConfigError(
                f'{metric} of tier {tier} has {notation!r}; write a rate such as "1000/day"'
            ) from None
        rates.append(Rate(metric, item.amount, float(item.get_expiry())))
    return rates


class Tiers:
    """Levels by name, without regard to case, and by cumulative recharge.

    Raises:
        ConfigError: No tier, one name twice, one boundary twice, or none for a recharge of 0.
    """

    def __init__(self, tiers: Iterable[Tier]) -> None:
        self.tiers = tuple(sorted(tiers, key=lambda tier: tier.recharged_from_nano))
        if not self.tiers or self.tiers[0].recharged_from_nano != 0:
            raise ConfigError('one tier must have recharged_from = "0", for new accounts')
        self._by_name = {tier.name.casefold(): tier for tier in self.tiers}
        if len(self._by_name) < len(self.tiers):
            raise ConfigError("two tiers have one name (case does not count)")
        if len({tier.recharged_from_nano for tier in self.tiers}) < len(self.tiers):
            raise ConfigError("two tiers have one recharged_from")

    def named(self, name: str) -> Tier:
        """Return the tier of a name, without regard to case.

        Raises:
            ConfigError: There is none.
        """
        tier = self._by_name.get(name.casefold())
        if tier is None:
            names = ", ".join(tier.name for tier in self.tiers)
            raise ConfigError(f"there is no tier {name!r}; there are {names}")
        return tier

    def for_recharge(self, recharged: Decimal | str | int) -> Tier:
        """Return the level of a cumulative recharge in ¥; a boundary belongs to the higher level.

        Raises:
            ConfigError: Not an amount of money (floats are not exact).
        """
        nano = nano_of(recharged, "recharged")
        return [tier for tier in self.tiers if tier.recharged_from_nano <= nano][-1]

    def of(self, account: "Account") -> Tier:
        """Return an account's level: its own, else by its cumulative recharge.

        Raises:
            ConfigError: It names a tier that does not exist.
        """
        if isinstance(account.tier, Tier):
            return account.tier
        if account.tier is not None:
            return self.named(account.tier)
        return self.for_recharge(account.recharged)

    @classmethod
    def from_toml(cls, text: str, *, source: str = "tiers") -> "Tiers":
        """Read levels: one `[[tier]]` table each, with the fields of `Tier` as keys.

        Raises:
            ConfigError: Not TOML, an unknown or missing key, or a limit that cannot hold.
        """
        table = tables.parse(text, source)
        tables.refuse_unknown(table, {"tier"}, source)
        tiers = []
        for number, row in enumerate(tables.rows(table, "tier", source), 1):
            where = f"{source}: tier {number}"
            tables.refuse_unknown(row, (*_REQUIRED, "recharged_from", "requests", "tokens"), where)
            missing = [key for key in _REQUIRED if key not in row]
            if missing:
                raise ConfigError(f"{where} lacks {', '.join(missing)}")
            tiers.append(Tier(**row))
        return cls(tiers)

    @classmethod
    def default(cls) -> "Tiers":
        """Read the levels that ship with the package."""
        return cls.from_toml(tables.shipped("tiers.toml"), source="tiers.toml")


def _is_text(text: str) -> bool:
    if "\0" in text:  # which ends a text in many a database
        return False
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates, which no database takes
        return False
    return True


_REQUIRED = ("name", "concurrency", "requests_per_minute", "tokens_per_minute")


@dataclass(frozen=True, slots=True)
class Account:
    """Who is limited and billed; all keys of an account share its limits.

    `tier` is a level's name or a `Tier` and beats `recharged`, the cumulative recharge in ¥ as a
    decimal string. `prices` are this account's own. `credit_limit` is how far below 0 its balance
    may go, in ¥ as a decimal string. `metadata` goes into its billing events. A `suspended` account
    is known and served nothing.

    Raises:
        ConfigError: No id, or an amount that is not exact.
    """

    id: str
    tier: str | Tier | None = None
    recharged: Decimal | str | int = "0"
    prices: Prices | None = None
    credit_limit: Decimal | str | int = "0"
    metadata: Mapping[str, Any] = field(default_factory=dict)
    suspended: bool = field(default=False, kw_only=True)
    credit_limit_nano: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id or not _is_text(self.id):
            raise ConfigError(
                f"account id is {self.id!r}; it must be a text of 1 or more characters"
            )
        nano_of(self.recharged, f"recharged of account {self.id}")
        credit_limit_nano = nano_of(self.credit_limit, f"credit_limit of account {self.id}")
        object.__setattr__(self, "credit_limit_nano", credit_limit_nano)
        try:
            msgspec.json.encode(dict(self.metadata))
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"metadata of account {self.id} is not JSON: {error}") from None
