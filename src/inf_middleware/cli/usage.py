"""`inf-middleware usage`: who used how much, and what it costs."""

import click
import msgspec

from inf_middleware.cli.table import table
from inf_middleware.domain.errors import ConfigError, LedgerUnavailable
from inf_middleware.domain.money import NANO, decimal_string
from inf_middleware.ledgers.reports import AccountUsage, usage_by_account
from inf_middleware.ledgers.sqlite import SqliteLedger

_HEADER = ("account", "tier", "requests", "input", "output", "tokens", "cost")

_SIGNS = {"CNY": "¥"}


@click.command()
@click.option(
    "--ledger", default="sqlite:///inf-ledger.db", show_default=True, help="The ledger's URI."
)
@click.option("--json", "as_json", is_flag=True, help="Print records as JSON.")
def usage(ledger: str, as_json: bool) -> None:
    """Show requests, tokens and cost of each account."""
    try:
        rows = usage_by_account(SqliteLedger.from_uri(ledger).path)
    except (ConfigError, LedgerUnavailable) as error:
        click.echo(f"inf-middleware: {error}", err=True)
        raise SystemExit(2) from None
    if as_json:
        records = [_record(row) for row in rows]
        click.echo(msgspec.json.format(msgspec.json.encode(records)).decode())
    elif rows:
        click.echo(_table(rows))
    else:
        click.echo("The ledger is empty: no request has been recorded yet.")


def _record(row: AccountUsage) -> dict[str, object]:
    return {
        "account": row.account,
        "tier": row.tier,
        "requests": row.requests,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "total_tokens": row.input_tokens + row.output_tokens,
        "amount_nano": str(row.amount_nano),
        "amount": decimal_string(row.amount_nano),
        "currency": row.currency,
        "unpriced_requests": row.unpriced_requests,
    }


def _table(rows: list[AccountUsage]) -> str:
    shown = [_cells(row) for row in rows]
    costs = [
        _money(sum(row.amount_nano for row in rows if row.currency == currency), currency)
        for currency in sorted({row.currency for row in rows})
    ]
    sums = [sum(getattr(row, name) for row in rows) for name in _SUMMED]
    shown.append(
        ("TOTAL", "", *(f"{number:,}" for number in (*sums, sums[1] + sums[2])), " + ".join(costs))
    )
    text = table(_HEADER, shown, left=2)
    unpriced = sum(row.unpriced_requests for row in rows)
    if unpriced:
        text += f"\n* {unpriced:,} of these requests had no price and are recorded at 0."
    return text


_SUMMED = ("requests", "input_tokens", "output_tokens")


def _cells(row: AccountUsage) -> tuple[str, ...]:
    mark = "*" if row.unpriced_requests else ""
    return (
        row.account + mark,
        row.tier,
        f"{row.requests:,}",
        f"{row.input_tokens:,}",
        f"{row.output_tokens:,}",
        f"{row.input_tokens + row.output_tokens:,}",
        _money(row.amount_nano, row.currency),
    )


def _money(nano: int, currency: str) -> str:
    whole, fraction = divmod(nano, NANO)
    digits = f"{fraction:09d}"
    amount = f"{whole:,}.{digits[:4]}{digits[4:].rstrip('0')}"
    return f"{_SIGNS[currency]}{amount}" if currency in _SIGNS else f"{amount} {currency}"
