"""`inf-middleware events`: deliveries to sinks, what they refused, and sending once more."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import click

from inf_middleware.cli import common
from inf_middleware.cli.common import Chosen, command, print_json
from inf_middleware.cli.table import printable, table
from inf_middleware.domain.errors import ConfigError
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.deliveries import (
    SinkState,
    Wanted,
    ask_replay,
    dead_letters,
    sink_states,
    wanted_spans,
)

# How often `--wait` looks: the relay itself looks for replays once a second.
_POLL_S = 0.5


@click.group()
def events() -> None:
    """See how deliveries to sinks go, and have events sent once more."""


@events.command()
@command
def status(chosen: Chosen) -> None:
    """Show how far each sink is: what waits, how old it is, what it refused."""
    states = common.read(chosen, sink_states)
    if chosen.as_json:
        now = datetime.now(UTC)
        print_json([{**s._asdict(), "oldest_pending_age_s": _age_s(s, now)} for s in states])
    elif states:
        click.echo(_status_table(states))
    else:
        click.echo("Nothing has been delivered from this ledger yet: no server had a sink.")


@events.command("dead-letters")
@click.option("--sink", help="Only those of this sink.")
@click.option("--limit", default=1_000, show_default=True, type=click.IntRange(1, 1_000_000))
@command
def dead_letters_command(chosen: Chosen, sink: str | None, limit: int) -> None:
    """List the events that sinks refused for good, and why."""
    letters = common.read(chosen, lambda: dead_letters(sink, limit))
    if chosen.as_json:
        print_json([letter._asdict() for letter in letters])
        return
    for letter in letters:
        shown = (letter.settled_at, letter.sink, letter.request_id, letter.account, letter.reason)
        click.echo("  ".join(printable(text) for text in shown))
    if not letters:
        click.echo("No dead letters.")
    elif len(letters) == limit:
        click.echo(f"These are the first {limit:,}; --limit shows more.", err=True)


@events.command()
@click.option("--sink", required=True, help="The sink they are sent to once more.")
@click.option("--id", "ids", multiple=True, help="An event's id; may be given again.")
@click.option("--since", help="From this moment on: 2026-11-24, or 2026-11-24T08:00:00Z.")
@click.option("--until", help="Before this moment.")
@click.option("--dead-letters", is_flag=True, help="All that the sink has refused.")
@click.option("--wait", is_flag=True, help="Until they have been sent.")
@command
def replay(
    chosen: Chosen,
    sink: str,
    ids: tuple[str, ...],
    since: str | None,
    until: str | None,
    dead_letters: bool,
    wait: bool,
) -> None:
    """Have events sent to a sink once more, with the same ids and bytes.

    The server that delivers takes them up within about a second, beside new ones, or when it is
    started. Those that are taken are no dead letters any more.
    """
    if bool(ids) + bool(since or until) + dead_letters != 1:
        raise ConfigError(
            "say which events by one of --id, --since with --until or without, and --dead-letters:"
            " they exclude each other"
        )
    wanted = Wanted(ids, _moment("--since", since), _moment("--until", until), dead_letters)
    with _progress("looking") as told:
        count, spans = common.read(chosen, lambda: wanted_spans(sink, wanted, told))

    async def ask(book: LedgerBook) -> None:
        await book.ledger.transact(lambda: ask_replay(sink, wanted, spans))

    if count:
        common.in_book(chosen, ask)
    if wait and count:
        _wait(chosen, sink)
    if chosen.as_json:
        print_json({"sink": sink, "replayed": count})
    elif count:
        noun, done = ("event", "has been") if count == 1 else ("events", "have been")
        done = done if wait else "will be"
        click.echo(f"{count:,} {noun} {done} sent to {printable(sink)} once more.")
    else:
        click.echo("No event matches: nothing is sent once more.")


def _wait(chosen: Chosen, sink: str) -> None:
    """Show what is left until nothing is; giving up leaves the rest to the relay."""
    asked = left = _replaying(chosen, sink)
    with _progress("sending") as told:
        while left:
            time.sleep(_POLL_S)
            left = _replaying(chosen, sink)
            told(asked - left, asked)


@contextlib.contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield what shows how much of how much is done, to people at a terminal only."""
    shown = False

    def tell(done: int, whole: int) -> None:
        nonlocal shown
        if sys.stderr.isatty():
            shown = True
            click.echo(f"\r{label} {max(done, 0) / max(whole, 1):4.0%}", nl=False, err=True)

    try:
        yield tell
    finally:
        if shown:
            click.echo(err=True)


def _replaying(chosen: Chosen, sink: str) -> int:
    states = common.read(chosen, sink_states)
    return next(state.replaying for state in states if state.sink == sink)


def _moment(option: str, text: str | None) -> str | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} is {text!r}; write 2026-11-24, or 2026-11-24T08:00:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).isoformat()


_HEADER = ("sink", "in doubt since", "delivered", "pending", "oldest", "dead letters", "replaying")


def _status_table(states: list[SinkState]) -> str:
    now = datetime.now(UTC)
    rows = [
        (
            state.sink,
            state.in_doubt_since or "",
            f"{state.delivered:,}",
            f"{state.pending:,}",
            _duration(_age_s(state, now)),
            f"{state.dead_letters:,}",
            f"{state.replaying:,}",
        )
        for state in states
    ]
    counts = ("delivered", "pending", "dead_letters", "replaying")
    delivered, pending, dead, replaying = (
        f"{sum(getattr(state, name) for state in states):,}" for name in counts
    )
    oldest = _duration(max((_age_s(state, now) or 0.0 for state in states), default=0.0) or None)
    total = ("TOTAL", "", delivered, pending, oldest, dead, replaying)
    return table(_HEADER, [*rows, total], left=2)


def _age_s(state: SinkState, now: datetime) -> float | None:
    if state.oldest_pending_at is None:
        return None
    return round((now - datetime.fromisoformat(state.oldest_pending_at)).total_seconds(), 3)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{hours // 24} d {hours % 24} h"
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )
