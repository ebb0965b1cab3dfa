"""`inf-middleware events`: deliveries to sinks, what they refused, and sending once more."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from inf_middleware.cli.table import printable, table
from inf_middleware.domain.errors import ConfigError, LedgerUnavailable
from inf_middleware.ledgers.deliveries import (
    SinkState,
    Wanted,
    ask_replay,
    dead_letters,
    sink_states,
)
from inf_middleware.ledgers.sqlite import SqliteLedger

# How often `--wait` looks: the relay itself looks for replays once a second.
_POLL_S = 0.5


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--ledger` and `--json`; what goes wrong is one line, and exit code 2."""

    @click.option(
        "--ledger", default="sqlite:///inf-ledger.db", show_default=True, help="The ledger's URI."
    )
    @click.option("--json", "as_json", is_flag=True, help="Print records as JSON.")
    @functools.wraps(function)
    def wrapped(ledger: str, **options: Any) -> None:
        try:
            function(SqliteLedger.from_uri(ledger).path, **options)
        except (ConfigError, LedgerUnavailable) as error:
            click.echo(f"inf-middleware: {printable(str(error))}", err=True)
            raise SystemExit(2) from None

    return wrapped


@click.group()
def events() -> None:
    """See how deliveries to sinks go, and have events sent once more."""


@events.command()
@_command
def status(path: Path, as_json: bool) -> None:
    """Show how far each sink is: what waits, how old it is, what it refused."""
    states = sink_states(path)
    if as_json:
        now = datetime.now(UTC)
        _print_json([{**s._asdict(), "oldest_pending_age_s": _age_s(s, now)} for s in states])
    elif states:
        click.echo(_status_table(states))
    else:
        click.echo("Nothing has been delivered from this ledger yet: no server had a sink.")


@events.command("dead-letters")
@click.option("--sink", help="Only those of this sink.")
@click.option("--limit", default=1_000, show_default=True, type=click.IntRange(1, 1_000_000))
@_command
def dead_letters_command(path: Path, as_json: bool, sink: str | None, limit: int) -> None:
    """List the events that sinks refused for good, and why."""
    letters = dead_letters(path, sink, limit)
    if as_json:
        _print_json([letter._asdict() for letter in letters])
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
@_command
def replay(
    path: Path,
    as_json: bool,
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
        raise ConfigError("say which events: --id, or --since and --until, or --dead-letters")
    wanted = Wanted(ids, _moment("--since", since), _moment("--until", until), dead_letters)
    with _progress("looking") as told:
        count = ask_replay(path, sink, wanted, told)
    if wait and count:
        _wait(path, sink)
    if as_json:
        _print_json({"sink": sink, "replayed": count})
    elif count:
        noun, done = ("event", "has been") if count == 1 else ("events", "have been")
        done = done if wait else "will be"
        click.echo(f"{count:,} {noun} {done} sent to {printable(sink)} once more.")
    else:
        click.echo("No event matches: nothing is sent once more.")


def _wait(path: Path, sink: str) -> None:
    """Show what is left until nothing is; giving up leaves the rest to the relay."""
    asked = left = _replaying(path, sink)
    with _progress("sending") as told:
        while left:
            time.sleep(_POLL_S)
            left = _replaying(path, sink)
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


def _replaying(path: Path, sink: str) -> int:
    return next(state.replaying for state in sink_states(path) if state.sink == sink)


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


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())
