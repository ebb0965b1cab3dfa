"""What operators see of deliveries, and ask of them, as steps for either database."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.outbox import is_within
from inf_middleware.ledgers.steps import Ask, Steps

# Events looked at between two signs of progress: some milliseconds.
_SCAN_MAX = 1_000


class SinkState(NamedTuple):
    """How far deliveries to a sink have come; moments as events write them.

    `delivered` is the place of the latest event that was: on SQLite their number, on PostgreSQL a
    few more, since a transaction that fails leaves its places unused. `pending` events have not
    been delivered, the oldest of them of `oldest_pending_at`;
    `replaying` are still to be sent once more; a delivery begun at `in_doubt_since` may have
    reached the far end.
    """

    sink: str
    delivered: int
    pending: int
    oldest_pending_at: str | None
    dead_letters: int
    replaying: int
    in_doubt_since: str | None


class DeadLetter(NamedTuple):
    """An event that a sink has refused for good, or whose outcome somebody has to look up."""

    sink: str
    request_id: str
    account: str
    settled_at: str
    amount_nano: str
    currency: str
    reason: str


class Wanted(NamedTuple):
    """Which events are to be sent once more: by id, by time, or the sink's dead letters."""

    ids: Sequence[str] = ()
    since: str | None = None
    until: str | None = None
    dead_letters: bool = False


# First and last place of events that are neighbours in the outbox.
Span: TypeAlias = tuple[int, int]


def sink_states() -> Steps[list[SinkState]]:
    """Return the state of every sink that was ever delivered to, by name."""
    # What was delivered is not counted, for that is all the history there is; what waits is.
    states = []
    for sink, seq in (yield from _cursors()):
        states.append((yield from _state(sink, seq)))
    return states


def dead_letters(sink: str | None, count_max: int) -> Steps[list[DeadLetter]]:
    """Return the dead letters of one sink or of all, in the order of their events.

    Raises:
        ConfigError: There is no such sink.
    """
    if sink is not None:
        yield from check_sink(sink)
    rows = yield Ask(
        "SELECT sink, reason, body FROM dead_letter JOIN outbox ON outbox.id = dead_letter.id"
        f"{'' if sink is None else ' WHERE sink = ?'} ORDER BY seq, sink LIMIT ?",
        (count_max,) if sink is None else (sink, count_max),
    )
    return [_dead_letter(*row) for row in rows]


def wanted_spans(
    sink: str, wanted: Wanted, progress: Callable[[int, int], None]
) -> Steps[tuple[int, list[Span]]]:
    """Return how many events are wanted, and where they are.

    `progress` is told how much of how much was looked at.

    Raises:
        ConfigError: There is no such sink or event.
    """
    yield from check_sink(sink)
    if wanted.since is not None or wanted.until is not None:
        return (yield from _by_time(wanted, progress))
    if wanted.dead_letters:
        rows = yield Ask(
            "SELECT seq FROM dead_letter JOIN outbox ON outbox.id = dead_letter.id WHERE sink = ?",
            (sink,),
        )
        places = {seq for (seq,) in rows}
    else:
        places = set()
        for event_id in wanted.ids:
            rows = yield Ask("SELECT seq FROM outbox WHERE id = ?", (event_id,))
            if not rows:
                raise ConfigError(f"there is no event {event_id!r}; nothing is sent once more")
            places.add(rows[0][0])
    # Neighbours go together: their place less their number among all is the same.
    runs = itertools.groupby(enumerate(sorted(places)), lambda pair: pair[1] - pair[0])
    pieces = [[place for _, place in run] for _, run in runs]
    return len(places), [(piece[0], piece[-1]) for piece in pieces]


def ask_replay(sink: str, wanted: Wanted, spans: Sequence[Span]) -> Steps[None]:
    """Have events sent once more by the relay of the running servers: all of them, or none."""
    yield Ask(
        "INSERT INTO replay (sink, next_seq, last_seq, since, until) VALUES (?, ?, ?, ?, ?)",
        [(sink, *span, wanted.since, wanted.until) for span in spans],
        many=True,
    )


def _by_time(wanted: Wanted, progress: Callable[[int, int], None]) -> Steps[tuple[int, list[Span]]]:
    # Places are in the order of commits, which is nearly that of times but not just that: a bill
    # that was kept in a spool comes late.
    last: int = (yield Ask("SELECT coalesce(max(seq), 0) FROM outbox"))[0][0]
    count, first_seq, last_seq, seq = 0, 0, 0, 0
    while seq < last:
        rows = yield Ask(
            "SELECT seq, body FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?", (seq, _SCAN_MAX)
        )
        for place, body in rows:
            if is_within(BillingEvent.decode(bytes(body)), wanted.since, wanted.until):
                count, first_seq, last_seq = count + 1, first_seq or place, place
        seq = rows[-1][0]
        progress(seq, last)
    return count, [(first_seq, last_seq)] if count else []


def _state(sink: str, seq: int) -> Steps[SinkState]:
    oldest = yield Ask("SELECT body FROM outbox WHERE seq > ? ORDER BY seq LIMIT 1", (seq,))
    began = yield Ask("SELECT began_at FROM sink_attempt WHERE sink = ? AND seq > ?", (sink, seq))
    counts = yield Ask(
        # Up to the last, as if others could follow: PostgreSQL takes an open end for a third of all
        # events, and went through them all.
        "SELECT (SELECT count(*) FROM outbox"
        "  WHERE seq > ? AND seq <= (SELECT max(seq) FROM outbox)),"
        " (SELECT count(*) FROM dead_letter WHERE sink = ?),"
        " (SELECT count(*) FROM replay CROSS JOIN outbox"
        "  WHERE outbox.seq BETWEEN next_seq AND last_seq AND sink = ?)",
        (seq, sink, sink),
    )
    pending, dead, replaying = counts[0]
    return SinkState(
        sink=sink,
        delivered=seq,
        pending=pending,
        oldest_pending_at=BillingEvent.decode(bytes(oldest[0][0])).settled_at if oldest else None,
        dead_letters=dead,
        replaying=replaying,
        in_doubt_since=began[0][0] if began else None,
    )


def _dead_letter(sink: str, reason: str, body: bytes) -> DeadLetter:
    event = BillingEvent.decode(bytes(body))
    return DeadLetter(
        sink=sink,
        request_id=event.id,
        account=event.account,
        settled_at=event.settled_at,
        amount_nano=event.amount_nano,
        currency=event.currency,
        reason=reason,
    )


def check_sink(sink: str) -> Steps[int]:
    """Return the place of a sink's cursor.

    Raises:
        ConfigError: There is no such sink.
    """
    known = dict((yield from _cursors()))
    if sink not in known:
        listed = ", ".join(known) or "none yet"
        raise ConfigError(f"the ledger knows no sink {sink!r}; known are: {listed}")
    return known[sink]


def _cursors() -> Steps[list[tuple[str, int]]]:
    rows = yield Ask("SELECT sink, seq FROM sink_cursor ORDER BY sink")
    return [(sink, seq) for sink, seq in rows]
