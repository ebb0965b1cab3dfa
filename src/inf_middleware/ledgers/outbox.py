"""The relay's side of a ledger in SQLite: cursors, attempts, dead letters and replays."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import apsw

from inf_middleware.domain.events import BillingEvent
from inf_middleware.ports import Attempt, Replay


def pending(db: apsw.Connection, sink: str, count_max: int) -> list[Any]:
    """Return place and body of the next events after a sink's cursor."""
    return db.execute(
        "SELECT seq, body FROM outbox WHERE seq >"
        " coalesce((SELECT seq FROM sink_cursor WHERE sink = ?), 0)"
        " ORDER BY seq LIMIT ?",
        (sink, count_max),
    ).fetchall()


def advance(db: apsw.Connection, sink: str, place: int, rejected: Mapping[str, str]) -> None:
    """Move a sink's cursor, never back; a first time makes the sink known."""
    with db:
        _bury(db, sink, rejected)
        db.execute(
            "INSERT INTO sink_cursor (sink, seq) VALUES (?, ?)"
            " ON CONFLICT (sink) DO UPDATE SET seq = excluded.seq WHERE excluded.seq > seq",
            (sink, place),
        )


def attempt(db: apsw.Connection, sink: str) -> Attempt | None:
    """Return the attempt that was begun last."""
    row: Any = db.execute(
        "SELECT seq, began_at FROM sink_attempt WHERE sink = ?", (sink,)
    ).fetchone()
    return None if row is None else Attempt(row[0], datetime.fromisoformat(row[1]))


def begin(db: apsw.Connection, sink: str, begun: Attempt) -> None:
    """Write an attempt down."""
    db.execute(
        "INSERT INTO sink_attempt (sink, seq, began_at) VALUES (?, ?, ?)"
        " ON CONFLICT (sink) DO UPDATE SET seq = excluded.seq, began_at = excluded.began_at",
        (sink, begun.place, begun.began.isoformat()),
    )


def replay(db: apsw.Connection, sink: str, count_max: int) -> Replay | None:
    """Return the next events to be sent once more: at most so many places are looked at."""
    wanted: Any = db.execute(
        "SELECT id, next_seq, last_seq, since, until FROM replay WHERE sink = ?"
        " ORDER BY id LIMIT 1",
        (sink,),
    ).fetchone()
    if wanted is None:
        return None
    replay_id, next_seq, last_seq, since, until = wanted
    rows: Any = db.execute(
        "SELECT seq, body FROM outbox WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
        (next_seq, last_seq, count_max),
    ).fetchall()
    place = rows[-1][0] if len(rows) == count_max else last_seq
    events = [BillingEvent.decode(body) for _, body in rows]
    return Replay(replay_id, place, [e for e in events if is_within(e, since, until)])


def is_within(event: BillingEvent, since: str | None, until: str | None) -> bool:
    """Tell whether an event's time is not before `since` and before `until`."""
    at = datetime.fromisoformat(event.settled_at)
    if since is not None and at < datetime.fromisoformat(since):
        return False
    return until is None or at < datetime.fromisoformat(until)


def replayed(db: apsw.Connection, sink: str, replay: Replay, rejected: Mapping[str, str]) -> None:
    """Go on after a replay's events; what was taken is no dead letter any more."""
    with db:
        db.executemany(
            "DELETE FROM dead_letter WHERE sink = ? AND id = ?",
            [(sink, event.id) for event in replay.events],
        )
        _bury(db, sink, rejected)
        db.execute("UPDATE replay SET next_seq = ? + 1 WHERE id = ?", (replay.place, replay.id))
        db.execute("DELETE FROM replay WHERE id = ? AND next_seq > last_seq", (replay.id,))


def _bury(db: apsw.Connection, sink: str, rejected: Mapping[str, str]) -> None:
    db.executemany(
        "INSERT INTO dead_letter (sink, id, reason) VALUES (?, ?, ?)"
        " ON CONFLICT (sink, id) DO UPDATE SET reason = excluded.reason",
        [(sink, event_id, reason) for event_id, reason in rejected.items()],
    )
