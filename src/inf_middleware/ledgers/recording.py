"""How settlements get into SQLite: statements that are prepared once, run for each of many rows."""

from collections.abc import Sequence

import apsw

from inf_middleware.ledgers.rows import COLUMNS, Rows

# A repeated id changes nothing: a settlement may be handed over again.
_INSERT_REQUEST = (
    f"INSERT INTO request ({', '.join(COLUMNS)})"
    f" VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT (request_id) DO NOTHING"
)
# Only of the record that is there: one that was written before stays as it is, amount included.
_INSERT_POSTING = (
    "INSERT INTO posting (request_id, debit, credit, amount_nano, currency)"
    " SELECT request_id, ?, ?, amount_nano, currency FROM request"
    " WHERE request_id = ? AND amount_nano = ? ON CONFLICT (request_id) DO NOTHING"
)
_INSERT_EVENT = "INSERT INTO outbox (id, body) VALUES (?, ?) ON CONFLICT (id) DO NOTHING"


def record(db: apsw.Connection, rows: Sequence[Rows]) -> None:
    """Write records, postings and events inside whatever transaction is open."""
    db.executemany(_INSERT_REQUEST, [row.request for row in rows])
    postings = [row.posting for row in rows if row.posting]
    db.executemany(
        _INSERT_POSTING,
        [(debit, credit, request_id, amount) for request_id, debit, credit, amount, _ in postings],
    )
    db.executemany(_INSERT_EVENT, [row.event for row in rows])
