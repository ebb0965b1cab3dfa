"""`inf-middleware ledger reconcile`: every nano explained, and sinks held against the ledger."""

import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import click

from inf_middleware.cli.common import (
    Chosen,
    command,
    in_book,
    money,
    print_json,
    read,
    record_of,
)
from inf_middleware.cli.table import printable
from inf_middleware.domain.errors import ConfigError
from inf_middleware.ledgers import comparing, reconcile
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.deliveries import check_sink
from inf_middleware.ledgers.reconcile import Check
from inf_middleware.ports import RecallingSink
from inf_middleware.sinks.uris import sink_from_uri, without_secrets


@click.command("reconcile")
@click.option("--retired", multiple=True, help="A sink that is used no more, and may be behind.")
@click.option("--sinks", "of_settings", is_flag=True, help="Ask the sinks of the settings, too.")
@click.option(
    "--sink",
    "named",
    multiple=True,
    metavar="NAME=URI",
    help="Ask a sink what it has: jsonl:PATH, or redis://…; may be given again.",
)
@command
def reconcile_all(
    chosen: Chosen, retired: tuple[str, ...], of_settings: bool, named: tuple[str, ...]
) -> None:
    """Explain every nano; exit code 1 where something does not add up.

    With --sinks or --sink, what the far ends of sinks have is compared with what was delivered to
    them, event by event.
    """
    asked = dict(_asked(chosen, of_settings, named))
    found = read(chosen, lambda: reconcile.checks(retired=retired))
    wrong: list[str] = []
    totals = read(chosen, reconcile.totals)
    with _bar(totals["events"], "events") as bar:
        place: int | None = 0
        while place is not None:
            at = place
            place, differences = read(chosen, lambda at=at: reconcile.check_events(at))  # type: ignore[misc]
            wrong += differences
            bar.update(reconcile.PAGE)
    found.append(reconcile.events_check(wrong))
    for name, sink in asked.items():
        with _bar(totals["events"], f"sink {name}") as bar:
            check, compared = _compare(chosen, name, sink, bar.update)
        found.append(check)
        totals["sinks"][name]["compared"] = asdict(compared)
    ok = all(check.ok for check in found)
    if chosen.as_json:
        print_json({"ok": ok, "checks": [record_of(check) for check in found], **totals})
    else:
        _print_checks(found, totals)
    if not ok:
        raise SystemExit(1)


def _bar(length: int, label: str) -> Any:
    return click.progressbar(
        length=length, label=label, file=sys.stderr, hidden=not sys.stderr.isatty()
    )


def _asked(
    chosen: Chosen, of_settings: bool, named: tuple[str, ...]
) -> list[tuple[str, RecallingSink]]:
    """Return the sinks that are to be asked; say which of the settings cannot be."""
    asked: list[tuple[str, RecallingSink]] = []
    for text in named:
        name, separator, uri = text.partition("=")
        sink = sink_from_uri(uri) if separator else None
        if not isinstance(sink, RecallingSink):
            raise ConfigError(
                f"--sink is {without_secrets(text)!r}; write NAME=jsonl:PATH or"
                " NAME=redis://HOST:PORT?stream=NAME: other far ends cannot be asked what they have"
            )
        read(chosen, partial(check_sink, name))
        asked.append((name, sink))
    if not of_settings:
        return asked
    known = read(chosen, reconcile.totals)["sinks"]
    for name, given in chosen.sinks.items():
        one = sink_from_uri(given) if isinstance(given, str) else given
        if name not in known:
            click.echo(f"sink {printable(name)}: nothing was delivered to it yet", err=True)
        elif isinstance(one, RecallingSink):
            asked.append((name, one))
        else:
            click.echo(f"sink {printable(name)}: cannot be asked what it has", err=True)
    return asked


def _compare(
    chosen: Chosen, name: str, sink: RecallingSink, progress: Callable[[int], None]
) -> tuple[Check, comparing.Compared]:
    async def go(book: LedgerBook) -> comparing.FarEnd:
        far_end = comparing.FarEnd(name, sink.forgets)
        # The cursor before the far end, the far end before the ledger: what a server does meanwhile
        # is then nowhere missing.
        cursor = await book.ledger.read(lambda: check_sink(name))
        try:
            async for bodies in sink.recall():
                far_end.add(bodies)
        except OSError as error:
            raise ConfigError(f"sink {name} cannot be asked what it has: {error}") from None
        finally:
            close = getattr(sink, "aclose", None)
            if close is not None:
                await close()
        place = 0
        while page := await book.ledger.read(lambda at=place: comparing.delivered(name, at)):  # type: ignore[misc]
            owed = [(i, body) for seq, i, body, refused in page if seq <= cursor and not refused]
            rest = [(i, body) for seq, i, body, refused in page if seq > cursor or refused]
            far_end.compare(owed)
            far_end.excuse(rest)
            place = page[-1][0]
            progress(len(page))
        return far_end

    far_end = in_book(chosen, go)
    return far_end.check(), far_end.compared


def _print_checks(found: list[Check], totals: dict[str, Any]) -> None:
    for check in found:
        click.echo(f"{'ok' if check.ok else 'WRONG':<6} {check.check}")
        for difference in check.differences:
            click.echo(f"       {printable(difference)}")
        if check.count > len(check.differences):
            click.echo(f"       … and {check.count - len(check.differences):,} more")
    click.echo(
        f"\n{totals['records']:,} records, {totals['postings']:,} postings,"
        f" {totals['events']:,} events"
    )
    for currency, sums in totals["currencies"].items():
        for name, nano in sums.items():
            click.echo(f"  {name.removesuffix('_nano'):<18}{money(int(nano), currency):>20}")
    for sink, state in totals["sinks"].items():
        click.echo(
            f"  sink {printable(sink)}: {state['waiting']:,} waiting,"
            f" {state['dead_letters']:,} refused for good{_compared(state.get('compared'))}"
        )


def _compared(told: dict[str, int] | None) -> str:
    if told is None:
        return ""
    more = [f"{count:,} {what}" for what, count in told.items() if count and what != "events"]
    return f"; {told['events']:,} found there" + (f" ({', '.join(more)})" if more else "")
