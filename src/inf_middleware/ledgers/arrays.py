"""How settlements get into PostgreSQL: all of them as one array of its type `settlement`.

Encoding an array per column took several times as long: each of its elements was looked at for
being an array itself.
"""

from collections.abc import Sequence
from typing import Any

from inf_middleware.ledgers.rows import Rows

# What the functions of `postgres-4.sql` take: the array, and the key of the lock of who writes.
RECORD = "SELECT record_settlements($1)"
SETTLE = "SELECT settle($1, $2)"

# How JSON writes the one character that PostgreSQL's texts do not have.
_NUL = rb"\u0000"


def settlements_of(rows: Sequence[Rows]) -> list[tuple[Any, ...]]:
    """Return the array of settlements; of several rows of one request the first counts."""
    first: dict[str, Rows] = {}
    for row in rows:
        first.setdefault(row.request_id, row)
    return [_settlement_of(row) for row in first.values()]


def _settlement_of(row: Rows) -> tuple[Any, ...]:
    body = row.event
    sides = row.posting[1:3] if row.posting else (None, None)
    if _NUL in body:  # every text of a record is in its event as well
        return (*map(storable, (*row.request, *sides)), body)
    return (*row.request, *sides, body)


def storable(value: Any) -> Any:
    """Return a parameter as PostgreSQL takes it: its texts have no NUL (events do, as bytes)."""
    if type(value) is str and "\0" in value:
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return value
