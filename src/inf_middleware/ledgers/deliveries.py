"""What operators see of deliveries, and ask of them: states, dead letters and replays."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from inf_middleware.domain.errors import ConfigError, LedgerUnavailable
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.connection import connect, connect_to_read
from inf_middleware.ledgers.outbox import is_within

# Events looked at between two signs of progress: some milliseconds.
_SCAN_MAX = 1_000


class SinkState(NamedTuple):
    """How far deliveries to a sink have come; moments as events write them.

    `pending` events have not been delivered, the oldest of them of `oldest_pending_at`;
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


def sink_states(path: Path) -> list[SinkState]:
    """Return the state of every sink that was ever delivered to, by name.

    Raises:
        LedgerUnavailable: The file is not there, or is no ledger.
    """
    with _reading(path) as db:
        # Places have no gaps: events are never deleted.
        last = _one(db, "SELECT coalesce(max(seq), 0) FROM outbox")
        return [_state(db, sink, seq, last) for sink, seq in _cursors(db)]


def dead_letters(path: Path, sink: str | None, count_max: int) -> list[DeadLetter]:
    """Return the dead letters of one sink or of all, in the order of their events.

    Raises:
        LedgerUnavailable: The file is not there, or is no ledger.
        ConfigError: There is no such sink.
    """
    with _reading(path) as db:
        if sink is not None:
            _check_sink(db, path, sink)
        rows: Any = db.execute(
            "SELECT sink, reason, body FROM dead_letter JOIN outbox USING (id)"
            " WHERE ?1 IS NULL OR sink = ?1 ORDER BY seq, sink LIMIT ?2",
            (sink, count_max),
        )
        return [_dead_letter(*row) for row in rows]


def ask_replay(path: Path, sink: str, wanted: Wanted, progress: Callable[[int, int], None]) -> int:
    """Have events sent once more by the relay of the running servers; return how many.

    All of them are asked for at once, or none. `progress` is told how much of how much was looked
    at.

    Raises:
        LedgerUnavailable: The file is not there, or is no ledger.
        ConfigError: There is no such sink or event.
    """
    with _reading(path) as db:
        _check_sink(db, path, sink)
        count, ranges = _ranges(db, sink, wanted, progress)
    if ranges:
        _write(path, [(sink, *span, wanted.since, wanted.until) for span in ranges])
    return count


def _write(path: Path, replays: Sequence[tuple[str, int, int, str | None, str | None]]) -> None:
    with contextlib.closing(connect(path)) as db:
        try:
            with db:  # all of them, or none
                db.executemany(
                    "INSERT INTO replay (sink, next_seq, last_seq, since, until)"
                    " VALUES (?, ?, ?, ?, ?)",
                    replays,
                )
        except apsw.Error as error:
            raise LedgerUnavailable(f"{path} cannot be written: {error}") from error


def _ranges(
    db: apsw.Connection, sink: str, wanted: Wanted, progress: Callable[[int, int], None]
) -> tuple[int, list[tuple[int, int]]]:
    if wanted.since is not None or wanted.until is not None:
        return _by_time(db, wanted, progress)
    if wanted.dead_letters:
        rows: Any = db.execute(
            "SELECT seq FROM dead_letter JOIN outbox USING (id) WHERE sink = ? ORDER BY seq",
            (sink,),
        )
        places = [seq for (seq,) in rows]
    else:
        places = []
        for event_id in wanted.ids:
            row: Any = db.execute("SELECT seq FROM outbox WHERE id = ?", (event_id,)).fetchone()
            if row is None:
                raise ConfigError(f"there is no event {event_id!r}; nothing is sent once more")
            places.append(row[0])
    places = sorted(set(places))
    # Neighbours go together: their place less their number among all is the same.
    runs = itertools.groupby(enumerate(places), lambda pair: pair[1] - pair[0])
    pieces = [[place for _, place in run] for _, run in runs]
    return len(places), [(piece[0], piece[-1]) for piece in pieces]


def _by_time(
    db: apsw.Connection, wanted: Wanted, progress: Callable[[int, int], None]
) -> tuple[int, list[tuple[int, int]]]:
    # Places are in the order of commits, which is nearly that of times but not just that: a bill
    # that was kept in a spool comes late.
    last: int = _one(db, "SELECT coalesce(max(seq), 0) FROM outbox")
    count, first_seq, last_seq, seq = 0, 0, 0, 0
    while seq < last:
        rows: Any = db.execute(
            "SELECT seq, body FROM outbox WHERE seq > ? ORDER BY seq LIMIT ?", (seq, _SCAN_MAX)
        ).fetchall()
        for place, body in rows:
            if is_within(BillingEvent.decode(body), wanted.since, wanted.until):
                count, first_seq, last_seq = count + 1, first_seq or place, place
        seq = rows[-1][0]
        progress(seq, last)
    return count, [(first_seq, last_seq)] if count else []


def _state(db: apsw.Connection, sink: str, seq: int, last: int) -> SinkState:
    row: Any = db.execute(
        "SELECT body FROM outbox WHERE seq > ? ORDER BY seq LIMIT 1", (seq,)
    ).fetchone()
    began: Any = db.execute(
        "SELECT began_at FROM sink_attempt WHERE sink = ? AND seq > ?", (sink, seq)
    ).fetchone()
    return SinkState(
        sink=sink,
        delivered=seq,
        pending=last - seq,
        oldest_pending_at=BillingEvent.decode(row[0]).settled_at if row else None,
        dead_letters=_one(db, "SELECT count(*) FROM dead_letter WHERE sink = ?", sink),
        replaying=_one(
            db,
            "SELECT coalesce(sum(last_seq - next_seq + 1), 0) FROM replay WHERE sink = ?",
            sink,
        ),
        in_doubt_since=began[0] if began else None,
    )


def _dead_letter(sink: str, reason: str, body: bytes) -> DeadLetter:
    event = BillingEvent.decode(body)
    return DeadLetter(
        sink=sink,
        request_id=event.id,
        account=event.account,
        settled_at=event.settled_at,
        amount_nano=event.amount_nano,
        currency=event.currency,
        reason=reason,
    )


def _check_sink(db: apsw.Connection, path: Path, sink: str) -> None:
    known = [name for name, _ in _cursors(db)]
    if sink not in known:
        listed = ", ".join(known) or "none yet"
        raise ConfigError(f"the ledger {path} knows no sink {sink!r}; known are: {listed}")


def _cursors(db: apsw.Connection) -> list[tuple[str, int]]:
    rows: Any = db.execute("SELECT sink, seq FROM sink_cursor ORDER BY sink").fetchall()
    return list(rows)


def _one(db: apsw.Connection, query: str, *arguments: str) -> int:
    row: Any = db.execute(query, arguments).fetchone()
    return int(row[0])


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[apsw.Connection]:
    with contextlib.closing(connect_to_read(path)) as db:
        try:
            yield db
        except apsw.Error as error:
            raise LedgerUnavailable(f"{path} cannot be read: {error}") from error
