"""Prices, and what a call costs by them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from fnmatch import fnmatchcase

import msgspec

from inf_middleware.domain import tables
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.money import nano_per_token
from inf_middleware.domain.usage import Usage


class Line(msgspec.Struct, frozen=True, gc=False):
    """One part of a cost: `quantity` tokens of `meter` at `unit_price_nano` each."""

    meter: str
    quantity: int
    unit_price_nano: int
    amount_nano: int


@dataclass(frozen=True, slots=True)
class Price:
    """What one model costs, in the list's currency per 1M tokens, as Decimal or decimal string.

    `model` may be a pattern ("Qwen/*"). `cached_input` is the price of input read from the
    server's cache; None charges it as input. `context` is in tokens. `since` is the aware UTC
    moment from which the price holds: a new price is a successor, never an edit. `features` and
    `scenario` are for people.

    Raises:
        ConfigError: A price that is not a whole number of nano per token, negative, or a float.
    """

    model: str
    input: Decimal | str
    output: Decimal | str
    cached_input: Decimal | str | None = None
    context: int | None = None
    features: Sequence[str] = ()
    aliases: Sequence[str] = ()
    since: datetime | None = None
    scenario: str = ""
    input_nano: int = field(init=False, repr=False)
    output_nano: int = field(init=False, repr=False)
    cached_input_nano: int | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model:
            raise ConfigError(f"model is {self.model!r}; a price names its model, or a pattern")
        since: object = self.since
        if since is not None and (not isinstance(since, datetime) or since.tzinfo is None):
            raise ConfigError(
                f"since of {self.model} is {since}; write it in UTC: 2027-01-01T00:00:00Z"
            )
        context: object = self.context
        if context is not None and (type(context) is not int or context < 1):
            raise ConfigError(
                f"context of {self.model} is {context!r}; it must be a whole number of tokens:"
                " 32768"
            )
        for name in ("features", "aliases"):
            texts: object = getattr(self, name)
            if (
                not isinstance(texts, Sequence)
                or isinstance(texts, str)
                or not all(isinstance(text, str) and text for text in texts)
            ):
                raise ConfigError(
                    f'{name} of {self.model} is {texts!r}; it must be a list of texts: ["a"]'
                )
        if not isinstance(self.scenario, str):
            raise ConfigError(f"scenario of {self.model} is {self.scenario!r}; it must be a text")
        cached = self.cached_input
        for name, value in (
            ("input_nano", nano_per_token(self.input, f"input price of {self.model}")),
            ("output_nano", nano_per_token(self.output, f"output price of {self.model}")),
            (
                "cached_input_nano",
                None
                if cached is None
                else nano_per_token(cached, f"cached_input price of {self.model}"),
            ),
            ("features", tuple(self.features)),
            ("aliases", tuple(self.aliases)),
        ):
            object.__setattr__(self, name, value)

    def lines(self, usage: Usage) -> tuple[Line, ...]:
        """Price a usage as disjoint lines; lines of no tokens are left out."""
        inputs, outputs, cached = usage.input_tokens, usage.output_tokens, 0
        lines = []
        if self.cached_input_nano is not None:
            cached = min(usage.cached_input_tokens, inputs)
            inputs -= cached
        if inputs:
            unit = self.input_nano
            lines.append(Line("input_tokens", inputs, unit, inputs * unit))
        if cached:
            unit = self.cached_input_nano or 0
            lines.append(Line("cached_input_tokens", cached, unit, cached * unit))
        if outputs:
            unit = self.output_nano
            lines.append(Line("output_tokens", outputs, unit, outputs * unit))
        return tuple(lines)


@dataclass(frozen=True, slots=True)
class Found:
    """A price in force and the version that names it in a record."""

    price: Price
    version: str


class Prices:
    """A dated price list, found by model name, alias or pattern.

    Raises:
        ConfigError: Two prices of one model from the same moment.
    """

    def __init__(
        self, prices: Iterable[Price], *, currency: str = "CNY", version: str = "custom"
    ) -> None:
        self.prices = tuple(prices)
        self.currency = currency
        self.version = version
        self._exact: dict[str, list[Price]] = {}
        self._patterns: dict[str, list[Price]] = {}  # in the order of the list
        for price in self.prices:
            for name in (price.model, *price.aliases):
                if any(sign in name for sign in "*?["):
                    self._patterns.setdefault(name, []).append(price)
                    continue
                dated = self._exact.setdefault(name, [])
                if any(other.since == price.since for other in dated):
                    raise ConfigError(
                        f"{name} has two prices from the same moment; a new price is a successor"
                        " with a later `from`"
                    )
                dated.append(price)
        # Of most models there is one price, in force at any moment: found without looking at it.
        self._undated = {
            name: self._named(dated[0])
            for name, dated in self._exact.items()
            if len(dated) == 1 and dated[0].since is None
        }

    def find(self, model: str | None, at: datetime | None = None) -> Found | None:
        """Return the price of a model in force at an aware UTC moment (now by default).

        One of its own name, or else of the first pattern in the list that fits it.
        """
        if model is None:
            return None
        undated = self._undated.get(model)
        if undated is not None:
            return undated
        at = at or datetime.now(UTC)
        best = _in_force(self._exact.get(model, ()), at)
        if best is None:
            for pattern, dated in self._patterns.items():
                if fnmatchcase(model, pattern):
                    best = _in_force(dated, at)
                    if best is not None:
                        break
        return None if best is None else self._named(best)

    def find_at(self, model: str | None, moment_ns: int) -> Found | None:
        """Return the price of a model in force at a moment, in ns since the Unix epoch."""
        undated = None if model is None else self._undated.get(model)
        return undated or self.find(model, datetime.fromtimestamp(moment_ns / 1e9, UTC))

    def _named(self, price: Price) -> Found:
        since = price.since and price.since.astimezone(UTC)
        dated = f"@{since:%Y-%m-%dT%H:%M:%SZ}" if since else ""
        return Found(price, f"{self.version}/{price.model}{dated}")

    @classmethod
    def from_toml(cls, text: str, *, source: str = "prices") -> "Prices":
        """Read a price list: `version`, `currency`, and one `[[price]]` table per price.

        Raises:
            ConfigError: Not TOML, an unknown or missing key, or a price that cannot hold.
        """
        return cls.from_table(tables.parse(text, source), source)

    @classmethod
    def from_table(cls, table: Mapping[str, object], source: str) -> "Prices":
        """Read a price list from a table that is parsed already; `source` names it in errors.

        Raises:
            ConfigError: An unknown or missing key, or a price that cannot hold.
        """
        tables.refuse_unknown(table, {"version", "currency", "price"}, source)
        prices = []
        for number, entry in enumerate(tables.rows(table, "price", source), 1):
            where = f"{source}: price {number}"
            row = dict(entry)
            tables.refuse_unknown(row, _PRICE_KEYS, where)
            row["since"] = row.pop("from", None)
            missing = [key for key in ("model", "input", "output") if key not in row]
            if missing:
                raise ConfigError(f"{where} lacks {', '.join(missing)}")
            prices.append(Price(**row))
        return cls(
            prices,
            currency=str(table.get("currency", "CNY")),
            version=str(table.get("version", source)),
        )

    @classmethod
    def default(cls) -> "Prices":
        """Read the price list that ships with the package."""
        return cls.from_toml(tables.shipped("prices.toml"), source="prices.toml")


def _in_force(dated: Iterable[Price], at: datetime) -> Price | None:
    """Return the latest price that holds at a moment, the first of several from one moment."""
    best: Price | None = None
    for price in dated:
        if price.since is None:
            best = best or price
        elif price.since <= at and (best is None or best.since is None or best.since < price.since):
            best = price
    return best


_PRICE_KEYS = (
    "model",
    "input",
    "output",
    "cached_input",
    "context",
    "features",
    "aliases",
    "scenario",
    "from",
)
