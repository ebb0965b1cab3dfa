"""How settlements get into SQLite: statements that are prepared once, and write several rows each.

Python's lock is given up and taken again at every run of a statement: with several rows a run
there is less of that, and less to do for each row.
"""

from collections.abc import Sequence
from typing import Any

import apsw

from inf_middleware.ledgers.rows import COLUMNS, EARNED, Rows

# Rows of one run: with 64 of them it is no faster.
_AT_ONCE = 8

# Records that may be unsorted: to look through them takes some 2 ms, and sorted at once those of a
# hundred accounts share pages by forties.
UNSORTED_MAX = 4_096


def _insert_into(table: str, columns: Sequence[str], end: str = "") -> tuple[str, str]:
    """Return what inserts several rows, and one."""
    row = f"({','.join('?' * len(columns))})"
    several, one = (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES {','.join([row] * count)}{end}"
        for count in (_AT_ONCE, 1)
    )
    return several, one


# A repeated id changes nothing.
_INSERT_REQUESTS = _insert_into(
    "request", ("seq", *COLUMNS), " ON CONFLICT (request_id) DO NOTHING"
)
_INSERT_EVENTS = _insert_into("event", ("seq", "body"))

# The last place that is taken: by a record, unless somebody has changed the file by hand.
_LAST = (
    "SELECT max((SELECT coalesce(max(seq), 0) FROM request),"
    " (SELECT coalesce(max(seq), 0) FROM event),"
    " (SELECT coalesce(max(seq), 0) FROM transfer)), sorted_seq FROM meta"
)

# Of the records that are new: one that was written before stays as it is, amount included.
_INSERT_CHARGES = (
    "INSERT INTO transfer (seq, debit, credit, amount_nano, currency)"
    f" SELECT seq, 'account:' || account, '{EARNED}', amount_nano, currency"
    " FROM request WHERE seq > ? AND kind = 'usage' AND amount_nano > 0 ORDER BY seq"
)
_INSERT_MOVEMENT = (
    "INSERT INTO transfer (seq, debit, credit, amount_nano, currency) VALUES (?, ?, ?, ?, ?)"
)
_KIND = COLUMNS.index("kind")

_SORT = (
    "INSERT INTO account_request (account, settled_at, seq)"
    " SELECT account, settled_at, seq FROM request WHERE seq > (SELECT sorted_seq FROM meta)"
    " ORDER BY account, settled_at, seq;"
    " INSERT INTO time_request (settled_at, seq)"
    " SELECT settled_at, seq FROM request WHERE seq > (SELECT sorted_seq FROM meta)"
    " ORDER BY settled_at, seq;"
    " UPDATE meta SET sorted_seq = (SELECT max(seq) FROM request)"
)


def record(db: apsw.Connection, rows: Sequence[Rows]) -> list[tuple[str]]:
    """Write records, postings and events inside whatever transaction is open.

    Returns the ids of those that were there already.
    """
    there: list[tuple[str]] = []
    ((last, is_sorted),) = db.execute(_LAST)
    end = last + len(rows)
    seqs: Sequence[int] = range(last + 1, end + 1)
    requests = [row.request for row in rows]
    if _insert(db, _INSERT_REQUESTS, len(COLUMNS) + 1, seqs, requests) < len(rows):
        fresh = {seq for (seq,) in db.execute("SELECT seq FROM request WHERE seq > ?", (last,))}
        there = [(row.request_id,) for seq, row in zip(seqs, rows, strict=True) if seq not in fresh]
        placed = [(seq, row) for seq, row in zip(seqs, rows, strict=True) if seq in fresh]
        seqs, rows = [seq for seq, _ in placed], [row for _, row in placed]
    db.execute(_INSERT_CHARGES, (last,))
    for seq, row in zip(seqs, rows, strict=True):
        if row.posting is not None and row.request[_KIND] != "usage":
            db.execute(_INSERT_MOVEMENT, (seq, *row.posting[1:]))
    _insert(db, _INSERT_EVENTS, 2, seqs, [(row.event,) for row in rows])
    if end - is_sorted > UNSORTED_MAX:
        db.execute(_SORT)
    return there


def _insert(
    db: apsw.Connection,
    statements: tuple[str, str],
    width: int,
    seqs: Sequence[int],
    rows: Sequence[tuple[Any, ...]],
) -> int:
    """Insert rows, each after its place, as `width` columns; return how many of them are new."""
    laid: list[Any] = []  # end to end
    for seq, row in zip(seqs, rows, strict=True):
        laid.append(seq)
        laid += row
    several, one = statements
    end, run = len(laid), _AT_ONCE * width
    whole = end - end % run
    before = db.total_changes()
    db.executemany(several, [laid[start : start + run] for start in range(0, whole, run)])
    db.executemany(one, [laid[start : start + width] for start in range(whole, end, width)])
    return db.total_changes() - before
