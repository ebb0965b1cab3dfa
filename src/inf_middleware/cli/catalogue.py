"""`inf-middleware prices` and `tiers`: the tables in force."""

from datetime import datetime
from decimal import Decimal

import click

from inf_middleware.cli.common import Chosen, command, print_json
from inf_middleware.cli.table import table
from inf_middleware.domain.money import decimal_string
from inf_middleware.domain.prices import Price


@click.command()
@command
def prices(chosen: Chosen) -> None:
    """Show the price list, per 1M tokens."""
    listed = chosen.prices
    if chosen.as_json:
        print_json(
            {
                "version": listed.version,
                "currency": listed.currency,
                "prices": [_price(price) for price in listed.prices],
            }
        )
        return
    rows = [
        (
            price.model,
            "" if price.since is None else f"{price.since:%Y-%m-%d %H:%M}",
            _amount(price.input),
            "" if price.cached_input is None else _amount(price.cached_input),
            _amount(price.output),
            "" if price.context is None else f"{price.context:,}",
        )
        for price in listed.prices
    ]
    header = ("model", "from", "input", "cached input", "output", "context")
    click.echo(f"{listed.version}, {listed.currency} per 1M tokens")
    click.echo(table(header, rows, left=2, total=False))


@click.command()
@command
def tiers(chosen: Chosen) -> None:
    """Show the levels and what they allow."""
    levels = chosen.tiers.tiers
    if chosen.as_json:
        print_json(
            [
                {
                    "tier": tier.name,
                    "recharged_from": decimal_string(tier.recharged_from_nano),
                    "concurrency": tier.concurrency,
                    "requests_per_minute": tier.requests_per_minute,
                    "tokens_per_minute": tier.tokens_per_minute,
                    "requests": [str(rate) for rate in tier.requests],
                    "tokens": [str(rate) for rate in tier.tokens],
                }
                for tier in levels
            ]
        )
        return
    rows = [
        (
            tier.name,
            decimal_string(tier.recharged_from_nano),
            f"{tier.concurrency:,}",
            f"{tier.requests_per_minute:,}",
            f"{tier.tokens_per_minute:,}",
            ", ".join([*map(str, tier.requests), *(f"{rate} tokens" for rate in tier.tokens)]),
        )
        for tier in levels
    ]
    header = ("tier", "recharged from", "concurrency", "RPM", "TPM", "further")
    click.echo(table(header, rows, left=1, total=False))


def _price(price: Price) -> dict[str, object]:
    since: datetime | None = price.since
    return {
        "model": price.model,
        "input": str(price.input),
        "output": str(price.output),
        "cached_input": None if price.cached_input is None else str(price.cached_input),
        "context": price.context,
        "features": list(price.features),
        "aliases": list(price.aliases),
        "scenario": price.scenario,
        "from": None if since is None else since.isoformat(),
    }


def _amount(price: Decimal | str) -> str:
    return f"{Decimal(price):f}"
