"""How settlements get into SQLite: statements that are prepared once, and write several rows each.

Python's lock is given up and taken again at every run of a statement: with several rows a run
there is less of that, and less to do for each row.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import apsw

from inf_middleware.ledgers.rows import COLUMNS, EARNED, Rows

# Rows of one run: with 64 of them it is no faster.
_AT_ONCE = 8

# Records that may be unsorted: to look through them takes some 2 ms, and sorted at once those of a
# hundred accounts share pages by forties.
UNSORTED_MAX = 4_096


def _insert_into(table: str, columns: Sequence[str], key: str) -> tuple[str, str]:
    """Return what inserts several rows, and one; a repeated id changes nothing."""
    row = f"({', '.join('?' * len(columns))})"
    several, one = (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES {', '.join([row] * count)}"
        f" ON CONFLICT ({key}) DO NOTHING"
        for count in (_AT_ONCE, 1)
    )
    return several, one


_INSERT_REQUESTS = _insert_into("request", COLUMNS, "request_id")
_INSERT_EVENTS = _insert_into("outbox", ("id", "body"), "id")

_LAST = "SELECT coalesce(max(seq), 0), (SELECT sorted_seq FROM meta) FROM request"

# Of the records that are new: one that was written before stays as it is, amount included.
_INSERT_CHARGES = (
    "INSERT INTO posting (request_id, debit, credit, amount_nano, currency)"
    f" SELECT request_id, 'account:' || account, '{EARNED}', amount_nano, currency"
    " FROM request WHERE seq > ? AND kind = 'usage' AND amount_nano > 0 ORDER BY seq"
)
_INSERT_MOVEMENT = (
    "INSERT INTO posting (request_id, debit, credit, amount_nano, currency)"
    " SELECT request_id, ?, ?, amount_nano, currency FROM request"
    " WHERE seq > ? AND request_id = ?"
)
_KIND = COLUMNS.index("kind")

_SORT = (
    "INSERT INTO account_request (account, settled_at, seq)"
    " SELECT account, settled_at, seq FROM request WHERE seq > (SELECT sorted_seq FROM meta)"
    " ORDER BY account, settled_at, seq;"
    " UPDATE meta SET sorted_seq = (SELECT max(seq) FROM request)"
)


def record(db: apsw.Connection, rows: Sequence[Rows]) -> None:
    """Write records, postings and events inside whatever transaction is open."""
    ((last, is_sorted),) = db.execute(_LAST)
    _insert(db, _INSERT_REQUESTS, [row.request for row in rows])
    db.execute(_INSERT_CHARGES, (last,))
    for row in rows:
        if row.posting is not None and row.request[_KIND] != "usage":
            request_id, debit, credit, *_ = row.posting
            db.execute(_INSERT_MOVEMENT, (debit, credit, last, request_id))
    _insert(db, _INSERT_EVENTS, [row.event for row in rows])
    if last + len(rows) - is_sorted > UNSORTED_MAX:
        db.execute(_SORT)


def _insert(
    db: apsw.Connection, statements: tuple[str, str], rows: Sequence[Sequence[Any]]
) -> None:
    several, one = statements
    whole = len(rows) - len(rows) % _AT_ONCE
    for start in range(0, whole, _AT_ONCE):
        db.execute(several, tuple(chain.from_iterable(rows[start : start + _AT_ONCE])))
    db.executemany(one, rows[whole:])
