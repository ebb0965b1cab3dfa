"""Levels and accounts: who may do how much."""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Any

import msgspec

from inf_middleware.domain import tables
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.money import nano_of
from inf_middleware.domain.prices import Prices
from inf_middleware.domain.rates import (
    MINUTE_S,
    LimitGroup,
    Limits,
    ModelLimits,
    Rate,
    RateNotation,
    check_limit,
    further_rates,
    limits_of,
    model_group,
)

# Models remembered with what limits them; their names come from callers.
MODELS_MAX = 1_000


@dataclass(frozen=True, slots=True)
class Tier:
    """A named set of limits.

    `recharged_from` is the cumulative recharge (¥) from which an account has this level.
    `requests` and `tokens` are further rates in the notation of the `limits` package, such as
    `requests=["1000/day"]`, or its `RateLimitItem`s. `models` gives models, by name or pattern,
    limits of their own: `models={"Qwen/*": {"requests_per_minute": 10}}`; for each metric named
    there the model's requests count under these alone.

    Raises:
        ConfigError: A limit that is not a whole number of 1 or more, or a rate that does not parse.
    """

    name: str
    concurrency: int
    requests_per_minute: int
    tokens_per_minute: int
    recharged_from: Decimal | str | int = "0"
    requests: Sequence[RateNotation] = ()
    tokens: Sequence[RateNotation] = ()
    models: Mapping[str, ModelLimits] = field(default_factory=dict, hash=False)
    recharged_from_nano: int = field(init=False, repr=False)
    _groups: tuple[LimitGroup, ...] = field(init=False, repr=False, compare=False)
    _own: Limits = field(init=False, repr=False, compare=False)
    _of_models: dict[str, Limits] = field(init=False, repr=False, compare=False)
    _found: dict[str, Limits] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigError(f"tier name is {self.name!r}; a tier needs a name")
        what = f"of tier {self.name}"
        for limit in ("concurrency", "requests_per_minute", "tokens_per_minute"):
            check_limit(getattr(self, limit), f"{limit} {what}")
        rates = (
            Rate("requests", self.requests_per_minute, MINUTE_S),
            Rate("tokens", self.tokens_per_minute, MINUTE_S),
            *further_rates("requests", self.requests, f"requests {what}"),
            *further_rates("tokens", self.tokens, f"tokens {what}"),
        )
        if not isinstance(self.models, Mapping):
            raise ConfigError(
                f"models {what} is {self.models!r}; give a mapping from model to limits:"
                ' {"Qwen/*": {"requests_per_minute": 10}}'
            )
        own = LimitGroup("", self.concurrency, rates)
        models = [
            model_group(pattern, given, f"limits {what}") for pattern, given in self.models.items()
        ]
        for name, value in (
            ("recharged_from_nano", nano_of(self.recharged_from, f"recharged_from {what}")),
            ("_groups", (own, *models)),
            ("_own", Limits((own,))),
            ("_of_models", {group.scope: limits_of(own, group) for group in models}),
            ("_found", {}),
            ("requests", tuple(self.requests)),
            ("tokens", tuple(self.tokens)),
            ("models", dict(self.models)),
        ):
            object.__setattr__(self, name, value)

    @property
    def rates(self) -> tuple[Rate, ...]:
        """The account's own rates, those of a minute first."""
        return self._groups[0].rates

    @property
    def groups(self) -> tuple[LimitGroup, ...]:
        """All limits: the account's own, then those of models."""
        return self._groups

    def limits_for(self, model: str | None) -> Limits:
        """Return what limits requests of a model: by its name first, then by a pattern."""
        if model is None or not self._of_models:
            return self._own
        found = self._found.get(model)
        if found is None:
            found = self._of_models.get(model)
            fitting = (
                limits for pattern, limits in self._of_models.items() if fnmatchcase(model, pattern)
            )
            found = found or next(fitting, self._own)
            if len(self._found) < MODELS_MAX:
                self._found[model] = found
        return found

    def groups_for(self, model: str | None) -> tuple[LimitGroup, ...]:
        """Return the limits that hold for requests of a model, in the groups that count them."""
        return self.limits_for(model).groups

    @classmethod
    def from_row(cls, row: Mapping[str, Any], where: str) -> "Tier":
        """Read a TOML table with the fields of a tier as keys; `where` names it in errors.

        Raises:
            ConfigError: An unknown or missing key, or a limit that cannot hold.
        """
        tables.refuse_unknown(row, (*_REQUIRED, *_OPTIONAL), where)
        missing = [key for key in _REQUIRED if key not in row]
        if missing:
            raise ConfigError(f"{where} lacks {', '.join(missing)}")
        return cls(**row)


class Tiers:
    """Levels by name, without regard to case, and by cumulative recharge.

    Raises:
        ConfigError: No tier, one name twice, one boundary twice, or none for a recharge of 0.
    """

    def __init__(self, tiers: Iterable[Tier]) -> None:
        self.tiers = tuple(sorted(tiers, key=lambda tier: tier.recharged_from_nano))
        if not self.tiers or self.tiers[0].recharged_from_nano != 0:
            raise ConfigError('one tier must have recharged_from = "0", for new accounts')
        self._from_nano = [tier.recharged_from_nano for tier in self.tiers]
        self._by_name = {tier.name.casefold(): tier for tier in self.tiers}
        if len(self._by_name) < len(self.tiers):
            raise ConfigError("two tiers have one name (case does not count)")
        if len(set(self._from_nano)) < len(self.tiers):
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
        return self._of_nano(nano_of(recharged, "recharged"))

    def _of_nano(self, recharged_nano: int) -> Tier:
        return self.tiers[bisect_right(self._from_nano, recharged_nano) - 1]

    def after(self, tier: Tier, recharged: Decimal | str | int) -> Tier | None:
        """Return the next level that further recharges lead to, None where there is none.

        Raises:
            ConfigError: Not an amount of money (floats are not exact).
        """
        least = max(nano_of(recharged, "recharged"), tier.recharged_from_nano)
        return next((one for one in self.tiers if one.recharged_from_nano > least), None)

    def of(self, account: "Account") -> Tier:
        """Return an account's level: its own, else by its cumulative recharge.

        Raises:
            ConfigError: It names a tier that does not exist.
        """
        if isinstance(account.tier, Tier):
            return account.tier
        if account.tier is not None:
            return self.named(account.tier)
        return self._of_nano(account.recharged_nano)

    @classmethod
    def from_toml(cls, text: str, *, source: str = "tiers") -> "Tiers":
        """Read levels: one `[[tier]]` table each, with the fields of `Tier` as keys.

        Raises:
            ConfigError: Not TOML, an unknown or missing key, or a limit that cannot hold.
        """
        return cls.from_table(tables.parse(text, source), source)

    @classmethod
    def from_table(cls, table: Mapping[str, Any], source: str) -> "Tiers":
        """Read levels from a table that is parsed already; `source` names it in errors.

        Raises:
            ConfigError: An unknown or missing key, or a limit that cannot hold.
        """
        tables.refuse_unknown(table, {"tier"}, source)
        tiers = []
        for number, row in enumerate(tables.rows(table, "tier", source), 1):
            tiers.append(Tier.from_row(row, f"{source}: tier {number}"))
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
_OPTIONAL = ("recharged_from", "requests", "tokens", "models")


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
    recharged_nano: int = field(init=False, repr=False)
    credit_limit_nano: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id or not _is_text(self.id):
            raise ConfigError(
                f"account id is {self.id!r}; it must be a text of 1 or more characters"
            )
        for name in ("recharged", "credit_limit"):
            nano = nano_of(getattr(self, name), f"{name} of account {self.id}")
            object.__setattr__(self, f"{name}_nano", nano)
        if not isinstance(self.suspended, bool):
            raise ConfigError(
                f"suspended of account {self.id} is {self.suspended!r}; it must be true or false"
            )
        try:
            msgspec.json.encode(dict(self.metadata))
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"metadata of account {self.id} is not JSON: {error}") from None


def looked_up(found: object) -> Account | None:
    """Return what a look-up returned.

    Raises:
        TypeError: It is neither an account nor None.
    """
    if found is not None and not isinstance(found, Account):
        raise TypeError(f"the look-up returned a {type(found).__name__}, not an Account or None")
    return found
