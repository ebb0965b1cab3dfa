"""`inf-middleware ledger`: disputes, reconciliation, migration and export."""

import csv
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from inf_middleware.cli.common import (
    Chosen,
    command,
    in_book,
    moment_of,
    money,
    print_json,
    read,
)
from inf_middleware.cli.reconcile import reconcile_all
from inf_middleware.cli.table import printable
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.money import decimal_string
from inf_middleware.ledgers import exports, reports, statements
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.reports import Period
from inf_middleware.ledgers.statements import Shown
from inf_middleware.settings import shown

# Events of an export that are read at a time.
_PAGE = 1_000


@click.group()
def ledger() -> None:
    """Look into a ledger, check it, bring it forward, export it."""


@ledger.command()
@click.argument("request")
@command
def show(chosen: Chosen, request: str) -> None:
    """Show one record in full, for a dispute."""
    found = read(chosen, lambda: statements.show(request))
    if chosen.as_json:
        print_json(
            {
                **reports.flat(found.event),
                "balance_before_nano": str(found.balance_before_nano),
                "balance_before": decimal_string(found.balance_before_nano),
                "balance_after_nano": str(found.balance_after_nano),
                "balance_after": decimal_string(found.balance_after_nano),
                "corrections": [reports.flat(event) for event in found.corrections],
                "continuation": found.continuation and reports.flat(found.continuation),
                "deliveries": found.deliveries,
            }
        )
    else:
        for name, value in _shown(found):
            click.echo(f"{name:<16}{printable(value)}")


@ledger.command()
@command
def migrate(chosen: Chosen) -> None:
    """Bring a ledger to the schema of this version; one that is there already stays as it is."""

    async def go(book: LedgerBook) -> tuple[int, int]:
        return await book.ledger.migrate()

    before, after = in_book(chosen, go)
    if chosen.as_json:
        print_json(
            {"ledger": shown("ledger", chosen.uri), "from_version": before, "schema_version": after}
        )
    elif before == after:
        click.echo(f"The ledger has schema version {after} already.")
    else:
        click.echo(f"The ledger is brought from schema version {before} to {after}.")


@ledger.command()
@click.option("--from", "start", metavar="WHEN", help="From this day or moment on.")
@click.option("--to", "end", metavar="WHEN", help="Up to, but without, this day or moment.")
@click.option("--account", metavar="ACCOUNT", help="Only this account.")
@click.option(
    "--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", show_default=True
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file, which appears when it is whole.  [default: standard output]",
)
@command
def export(
    chosen: Chosen,
    start: str | None,
    end: str | None,
    account: str | None,
    form: str,
    output: Path | None,
) -> None:
    """Write records, one a line, in the words of the events."""
    period = Period(moment_of(start, chosen.zone, "--from"), moment_of(end, chosen.zone, "--to"))
    texts = _texts(chosen, form, account, period)
    if output is None:
        for text in texts:
            click.echo(text, nl=False)
        return
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    count = 0
    try:
        with (
            partial.open("w", encoding="utf-8", newline="") as file,
            click.progressbar(
                texts, label="records", file=sys.stderr, hidden=not sys.stderr.isatty()
            ) as shown,
        ):
            for text in shown:
                file.write(text)
                count += 1
        partial.replace(output)
    except OSError as error:
        raise ConfigError(f"{output} cannot be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    if chosen.as_json:
        print_json({"output": str(output), "lines": count})
    else:
        click.echo(f"{count:,} lines are written to {output}.", err=True)


def _texts(chosen: Chosen, form: str, account: str | None, period: Period) -> Iterator[str]:
    if form == "csv":
        yield _csv_line(BillingEvent.__struct_fields__[:-1])
    place, last = 0, None
    if account is None and period != Period():
        found = read(chosen, lambda: exports.places(period))
        if found is None:
            return
        place, last = found[0] - 1, found[1]
    while True:
        page = read(
            chosen,
            lambda after=place: exports.events(  # type: ignore[misc]
                after, _PAGE, account=account, period=period, last=last
            ),
        )
        for _, event in page:
            data = reports.flat(event)
            if form == "csv":
                yield _csv_line([_cell(value) for value in data.values()])
            else:
                yield msgspec.json.encode(data).decode() + "\n"
        if len(page) < _PAGE:
            return
        place = page[-1][0]


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def _csv_line(cells: Sequence[Any]) -> str:
    line = io.StringIO()
    # Before Python 3.13 the writer quotes no carriage return but where it is the line's end.
    odd = any(isinstance(cell, str) and "\r" in cell for cell in cells)
    writer = csv.writer(line, csv.excel, lineterminator="\n")
    if odd:
        writer = csv.writer(line, csv.excel, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writerow(cells)
    return line.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, list | tuple | dict):
        return msgspec.json.encode(value).decode()
    # What begins so, spreadsheets run as a formula; names of models and keys are a caller's to
    # choose. The apostrophe makes it a text to them (owasp.org, "CSV Injection").
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _shown(found: Shown) -> Iterator[tuple[str, str]]:
    event = found.event
    currency = event.currency
    yield "request", event.request_id
    yield "kind", event.kind + (f", corrects {event.corrects}" if event.corrects else "")
    yield "account", f"{event.account}, level {event.tier}"
    yield "key", event.key_id or "–"
    if event.kind == "usage":
        yield "endpoint", event.endpoint
        yield "model", f"{event.model or '–'} (answered: {event.response_model or '–'})"
        yield "response", event.response_id or "–"
    if event.idempotency_key:
        yield "their key", event.idempotency_key
    yield "started", event.started_at
    yield "settled", event.settled_at
    yield "outcome", event.outcome
    if event.kind == "usage":
        yield "basis", event.basis
        yield "price", "none" if event.unpriced else event.price_version or "–"
    for line in event.lines:
        unit, amount = int(line.unit_price_nano), int(line.amount_nano)
        yield line.meter, f"{line.quantity:,} × {unit:,} nano = {money(amount, currency)}"
    yield "amount", money(int(event.amount_nano), currency)
    if int(event.overdrawn_nano):
        yield "overdrawn", money(int(event.overdrawn_nano), currency)
    yield "balance before", money(found.balance_before_nano, currency)
    yield "balance after", money(found.balance_after_nano, currency)
    for correction in found.corrections:
        told = f"{money(int(correction.amount_nano), currency)} as {correction.request_id}"
        yield "corrected", f"{told}, {correction.settled_at}"
    if found.continuation is not None:
        more = found.continuation
        told = f"{money(int(more.amount_nano), currency)} as {more.request_id}"
        yield "continued", f"{told}, {more.settled_at}"
    for sink, delivery in found.deliveries.items():
        yield "sink", f"{sink}: {delivery}"
    if not found.deliveries:
        yield "sink", "none was ever delivered to from this ledger"
    if event.metadata:
        yield "metadata", msgspec.json.encode(event.metadata).decode()


ledger.add_command(reconcile_all)
