"""The relay's side of a ledger, as steps for either database: cursors, attempts, replays."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.steps import Ask, Steps
from inf_middleware.ports import Attempt, Backlog, Replay


def pending(sink: str, count_max: int) -> Steps[Sequence[tuple[int, BillingEvent]]]:
    """Return the next events after a sink's cursor, each with its place."""
    rows = yield Ask(
        "SELECT seq, body FROM outbox WHERE seq >"
        " coalesce((SELECT seq FROM sink_cursor WHERE sink = ?), 0)"
        " ORDER BY seq LIMIT ?",
        (sink, count_max),
    )
    return [(seq, BillingEvent.decode(bytes(body))) for seq, body in rows]


def backlog(sink: str) -> Steps[Backlog]:
    """Return how much waits for a sink, from the ends of the outbox alone.

    Where a transaction has failed PostgreSQL leaves a place out: the number may be a little high.
    """
    rows = yield Ask(
        "SELECT coalesce((SELECT seq FROM sink_cursor WHERE sink = ?), 0),"
        " coalesce((SELECT max(seq) FROM outbox), 0)",
        (sink,),
    )
    cursor, last = rows[0]
    if last <= cursor:
        return Backlog(0, None)
    oldest = yield from pending(sink, 1)
    return Backlog(last - cursor, datetime.fromisoformat(oldest[0][1].settled_at))


def advance(sink: str, place: int, rejected: Mapping[str, str]) -> Steps[None]:
    """Move a sink's cursor, never back; a first time makes the sink known."""
    yield from _bury(sink, rejected)
    yield Ask(
        "INSERT INTO sink_cursor (sink, seq) VALUES (?, ?) ON CONFLICT (sink)"
        " DO UPDATE SET seq = excluded.seq WHERE excluded.seq > sink_cursor.seq",
        (sink, place),
    )


def attempt(sink: str) -> Steps[Attempt | None]:
    """Return the attempt that was begun last."""
    rows = yield Ask("SELECT seq, began_at FROM sink_attempt WHERE sink = ?", (sink,))
    return Attempt(rows[0][0], datetime.fromisoformat(rows[0][1])) if rows else None


def begin(sink: str, begun: Attempt) -> Steps[None]:
    """Write an attempt down."""
    yield Ask(
        "INSERT INTO sink_attempt (sink, seq, began_at) VALUES (?, ?, ?) ON CONFLICT (sink)"
        " DO UPDATE SET seq = excluded.seq, began_at = excluded.began_at",
        (sink, begun.place, begun.began.isoformat()),
    )


def replay(sink: str, count_max: int) -> Steps[Replay | None]:
    """Return the next events to be sent once more: at most so many places are looked at."""
    wanted = yield Ask(
        "SELECT id, next_seq, last_seq, since, until FROM replay WHERE sink = ?"
        " ORDER BY id LIMIT 1",
        (sink,),
    )
    if not wanted:
        return None
    replay_id, next_seq, last_seq, since, until = wanted[0]
    rows = yield Ask(
        "SELECT seq, body FROM outbox WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
        (next_seq, last_seq, count_max),
    )
    place = rows[-1][0] if len(rows) == count_max else last_seq
    events = [BillingEvent.decode(bytes(body)) for _, body in rows]
    return Replay(replay_id, place, [e for e in events if is_within(e, since, until)])


def is_within(event: BillingEvent, since: str | None, until: str | None) -> bool:
    """Tell whether an event's time is not before `since` and before `until`."""
    at = datetime.fromisoformat(event.settled_at)
    if since is not None and at < datetime.fromisoformat(since):
        return False
    return until is None or at < datetime.fromisoformat(until)


def replayed(sink: str, replay: Replay, rejected: Mapping[str, str]) -> Steps[None]:
    """Go on after a replay's events; what was taken is no dead letter any more."""
    yield Ask(
        "DELETE FROM dead_letter WHERE sink = ? AND id = ?",
        [(sink, event.id) for event in replay.events],
        many=True,
    )
    yield from _bury(sink, rejected)
    yield Ask("UPDATE replay SET next_seq = ? WHERE id = ?", (replay.place + 1, replay.id))
    yield Ask("DELETE FROM replay WHERE id = ? AND next_seq > last_seq", (replay.id,))


def _bury(sink: str, rejected: Mapping[str, str]) -> Steps[None]:
    yield Ask(
        "INSERT INTO dead_letter (sink, id, reason) VALUES (?, ?, ?)"
        " ON CONFLICT (sink, id) DO UPDATE SET reason = excluded.reason",
        [(sink, event_id, reason) for event_id, reason in rejected.items()],
        many=True,
    )
