"""What all commands share: which ledger, how errors and records are shown."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click
import msgspec

from inf_middleware.cli.table import printable
from inf_middleware.domain.errors import ConfigError, MiddlewareError
from inf_middleware.domain.moments import written, zone_of
from inf_middleware.domain.money import NANO, decimal_string
from inf_middleware.domain.prices import Prices
from inf_middleware.domain.tiers import Tiers
from inf_middleware.files import value_of
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.steps import Work
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.ports import Sink
from inf_middleware.settings import Sources, check

P = ParamSpec("P")
T = TypeVar("T")

_SIGNS = {"CNY": "¥"}

# The settings file of a command.
config_option = click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="The settings file; without it the one that INF_MIDDLEWARE_CONFIG names.",
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a command works with: its options, else what the settings say."""

    uri: str
    tiers: Tiers
    prices: Prices
    deployment: str
    sinks: Mapping[str, Sink | str]
    zone: tzinfo
    as_json: bool

    @property
    def ledger(self) -> LedgerBase:
        """The ledger, opened by its first use."""
        return ledger_of(self.uri)

    def book(self) -> LedgerBook:
        """Return the ledger with its accounts."""
        return LedgerBook(
            self.ledger,
            tiers=self.tiers,
            currency=self.prices.currency,
            deployment=self.deployment,
        )


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command its common options, as its first argument, and its way to fail.

    What the operator can mend is one line and exit code 2, without a traceback.
    """

    @click.option("--ledger", metavar="URI", help="The ledger; without it that of the settings.")
    @config_option
    @click.option("--json", "as_json", is_flag=True, help="Print records as JSON.")
    @functools.wraps(function)
    def wrapped(ledger: str | None, config: Path | None, as_json: bool, **arguments: Any) -> None:
        try:
            _check_texts(arguments.values())
            function(_chosen(ledger, config, as_json), **arguments)
        except MiddlewareError as error:
            click.echo(f"inf-middleware: {printable(str(error))}", err=True)
            raise SystemExit(2) from None

    return wrapped


def _check_texts(given: Iterable[Any]) -> None:
    for text in given:
        if isinstance(text, str) and text != text.encode("utf-8", "replace").decode():
            raise ConfigError(f"{text!r} is no UTF-8; have the terminal write UTF-8")


def in_book(chosen: Chosen, go: Callable[[LedgerBook], Awaitable[T]]) -> T:
    """Run a story with the ledger open for changes; made where it is not there yet."""

    async def story() -> T:
        async with chosen.book() as book:
            return await go(book)

    return asyncio.run(story())


def read(chosen: Chosen, work: Work[T]) -> T:
    """Read from a ledger that is there."""

    async def story(book: LedgerBook) -> T:
        await book.ledger.check()
        return await book.ledger.read(work)

    return in_book(chosen, story)


def print_json(value: Any) -> None:
    """Print a record, or a list of them."""
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def record_of(value: Any) -> dict[str, Any]:
    """Return a record in the words of the design: nano amounts as digits, and as decimals beside.

    A record within one is laid flat.
    """
    record: dict[str, Any] = {}
    for field in fields(value):
        told = getattr(value, field.name)
        if field.name.endswith("_nano"):
            record[field.name] = str(told)
            record[field.name.removesuffix("_nano")] = decimal_string(told)
        elif is_dataclass(told):
            record.update(record_of(told))
        else:
            record[field.name] = told
    return record


def money(nano: int, currency: str) -> str:
    """Show an amount to people: at least four places, since a token costs little."""
    whole, fraction = divmod(abs(nano), NANO)
    digits = f"{fraction:09d}"
    amount = f"{whole:,}.{digits[:4]}{digits[4:].rstrip('0')}"
    sign = "-" if nano < 0 else ""
    if currency in _SIGNS:
        return f"{sign}{_SIGNS[currency]}{amount}"
    return f"{sign}{amount} {currency}"


def moment_of(text: str | None, zone: tzinfo, what: str) -> str | None:
    """Read a day or a moment, in the zone of reports where it names none, as records write it.

    Raises:
        ConfigError: It is neither.
    """
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return written(moment if moment.tzinfo else moment.replace(tzinfo=zone))
    except ValueError:
        raise ConfigError(
            f"{what} is {text!r}; write a day such as 2026-11-24, or 2026-11-24T08:00:00Z"
        ) from None


def month_of(text: str | None, zone: tzinfo) -> tuple[str, str]:
    """Return the bounds of a month (this one where none is given), as records write them.

    Raises:
        ConfigError: It is no month.
    """
    first = datetime.now(zone).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    try:
        if text is not None:
            first = datetime.strptime(text, "%Y-%m").replace(tzinfo=zone)
        after = (first + timedelta(days=31)).replace(day=1)
        return written(first), written(after)
    except (ValueError, OverflowError):
        raise ConfigError(f"--month is {text!r}; write a month such as 2026-11") from None


def setting(sources: Sources, option: str, given: str | None = None) -> Any:
    """Return the value of an option: what a command is given, else what the settings say.

    Raises:
        ConfigError: It cannot hold.
    """
    if given is not None:
        try:
            return check(option, given, (option,))
        except ConfigError as error:
            raise ConfigError(f"--{option}: {error}") from None
    return value_of(sources.setting(option).value)


def _chosen(ledger: str | None, config: Path | None, as_json: bool) -> Chosen:
    sources = Sources(config)
    return Chosen(
        uri=setting(sources, "ledger", ledger),
        tiers=setting(sources, "tiers") or Tiers.default(),
        prices=setting(sources, "prices") or Prices.default(),
        deployment=setting(sources, "deployment"),
        sinks=setting(sources, "sinks"),
        zone=zone_of(setting(sources, "timezone")),
        as_json=as_json,
    )
