"""`inf-middleware usage` and `statement`: who used how much, and what it costs."""

from collections.abc import Sequence
from datetime import tzinfo

import click

from inf_middleware.cli.common import (
    Chosen,
    command,
    moment_of,
    money,
    month_of,
    print_json,
    read,
    record_of,
)
from inf_middleware.cli.table import table
from inf_middleware.domain.moments import day_of
from inf_middleware.domain.money import decimal_string
from inf_middleware.ledgers import reports, statements
from inf_middleware.ledgers.reports import By, Period, UsageRow
from inf_middleware.ledgers.statements import Statement

_FIELDS: dict[By, str] = {"account": "account", "day": "day", "model": "model", "key": "key_id"}

_SUMMED = ("requests", "input_tokens", "output_tokens")


@click.command()
@click.option(
    "--by",
    multiple=True,
    type=click.Choice(["account", "day", "model", "key"]),
    help="What to sum up by; may be given several times.  [default: account]",
)
@click.option("--account", metavar="ACCOUNT", help="Only this account.")
@click.option("--from", "start", metavar="WHEN", help="From this day or moment on.")
@click.option("--to", "end", metavar="WHEN", help="Up to, but without, this day or moment.")
@command
def usage(
    chosen: Chosen, by: tuple[By, ...], account: str | None, start: str | None, end: str | None
) -> None:
    """Show requests, tokens and cost, less what was credited."""
    names = list(dict.fromkeys(by or ("account",)))
    period = Period(moment_of(start, chosen.zone, "--from"), moment_of(end, chosen.zone, "--to"))
    rows = read(
        chosen, lambda: reports.usage(names, account=account, period=period, zone=chosen.zone)
    )
    if chosen.as_json:
        print_json([_record(row, names) for row in rows])
    elif rows:
        click.echo(_table(rows, names))
    elif account is None and start is None and end is None:
        click.echo("The ledger is empty: no request has been recorded yet.")
    else:
        click.echo("No request has been recorded that this asks for.")


@click.command()
@click.argument("account")
@click.option("--month", metavar="YYYY-MM", help="Which month.  [default: this one]")
@command
def statement(chosen: Chosen, account: str, month: str | None) -> None:
    """Show what an account had, got, used and has, over a month."""
    start, end = month_of(month, chosen.zone)
    currency = chosen.prices.currency
    found = read(chosen, lambda: statements.statement(account, currency, start, end))
    if chosen.as_json:
        print_json(
            {
                **record_of(found),
                "movements": [reports.flat(event) for event in found.movements],
                "usage": [_record(row, ["model"]) for row in found.usage],
            }
        )
    else:
        click.echo(_statement(found, chosen.zone))


def _record(row: UsageRow, by: Sequence[By]) -> dict[str, object]:
    record: dict[str, object] = {_FIELDS[name]: getattr(row, _FIELDS[name]) for name in by}
    if row.tier is not None:
        record["tier"] = row.tier
    return record | {
        "requests": row.requests,
        "input_tokens": row.input_tokens,
        "output_tokens": row.output_tokens,
        "total_tokens": row.input_tokens + row.output_tokens,
        "amount_nano": str(row.amount_nano),
        "amount": decimal_string(row.amount_nano),
        "currency": row.currency,
        "unpriced_requests": row.unpriced_requests,
    }


def _table(rows: Sequence[UsageRow], by: Sequence[By]) -> str:
    tiered = any(row.tier is not None for row in rows)
    header = (*by, *(["tier"] if tiered else []), *_HEADER)
    shown = [_cells(row, by, tiered) for row in rows]
    costs = [
        money(sum(row.amount_nano for row in rows if row.currency == currency), currency)
        for currency in sorted({row.currency for row in rows})
    ]
    sums = [sum(getattr(row, name) for row in rows) for name in _SUMMED]
    left = len(by) + tiered
    names = ["TOTAL", *[""] * (left - 1)]
    numbers = [f"{number:,}" for number in (*sums, sums[1] + sums[2])]
    shown.append((*names, *numbers, " + ".join(costs)))
    text = table(header, shown, left=left)
    unpriced = sum(row.unpriced_requests for row in rows)
    if unpriced:
        text += f"\n* {unpriced:,} of these requests had no price and are recorded at 0."
    return text


_HEADER = ("requests", "input", "output", "tokens", "cost")


def _cells(row: UsageRow, by: Sequence[By], tiered: bool) -> tuple[str, ...]:
    names = [str(getattr(row, _FIELDS[name]) or "–") for name in by]
    if row.unpriced_requests:
        names[0] += "*"
    return (
        *names,
        *([row.tier or ""] if tiered else []),
        f"{row.requests:,}",
        f"{row.input_tokens:,}",
        f"{row.output_tokens:,}",
        f"{row.input_tokens + row.output_tokens:,}",
        money(row.amount_nano, row.currency),
    )


def _statement(found: Statement, zone: tzinfo) -> str:
    rows = [("", "balance before", money(found.opening_nano, found.currency))]
    rows += [
        (
            day_of(event.settled_at, zone),
            f"{event.metadata.get('operation')} {event.metadata.get('reference') or event.id}",
            money(_signed(event.kind, event.metadata, int(event.amount_nano)), found.currency),
        )
        for event in found.movements
    ]
    rows += [
        (
            "",
            (
                f"{row.model or '–'}: {row.requests:,} requests,"
                f" {row.input_tokens + row.output_tokens:,} tokens"
            ),
            money(-row.amount_nano, found.currency),
        )
        for row in found.usage
    ]
    rows.append(("", "balance after", money(found.closing_nano, found.currency)))
    return table(("day", f"statement of {found.account}", "amount"), rows, left=2)


def _signed(kind: str, metadata: dict[str, object], amount: int) -> int:
    gives = kind in ("recharge", "grant") or metadata.get("operation") == "credit"
    return amount if gives else -amount
