"""How settlements get into PostgreSQL: one statement for all of them, with an array per column.

The first insertion decides which are new; only those get a posting and an event, whatever a
repeated settlement says now. Places in the outbox are in the order of the rows.
"""

from collections.abc import Sequence
from typing import Any

from inf_middleware.ledgers.rows import COLUMNS, Rows

# Beside the record: both sides of the posting, null where it costs nothing, and the event.
_BESIDE = ("debit", "credit", "body")

_NUMBERS = frozenset(
    (
        "input_tokens",
        "output_tokens",
        "cached_input_tokens",
        "cache_write_tokens",
        "reasoning_tokens",
        "amount_nano",
        "overdrawn_nano",
        "unpriced",
    )
)


def _type(column: str) -> str:
    if column == "body":
        return "BYTEA[]"
    return "BIGINT[]" if column in _NUMBERS else "TEXT[]"


_ARRAYS = ", ".join(
    f"CAST(${number} AS {_type(column)})" for number, column in enumerate((*COLUMNS, *_BESIDE), 1)
)

RECORD = f"""
WITH given AS (
    SELECT * FROM unnest({_ARRAYS})
    WITH ORDINALITY AS given ({", ".join((*COLUMNS, *_BESIDE))}, place)
), recorded AS (
    INSERT INTO request ({", ".join(COLUMNS)})
    SELECT {", ".join(COLUMNS)} FROM given ORDER BY place
    ON CONFLICT (request_id) DO NOTHING RETURNING request_id
), posted AS (
    INSERT INTO posting (request_id, debit, credit, amount_nano, currency)
    SELECT request_id, debit, credit, amount_nano, currency
    FROM given JOIN recorded USING (request_id) WHERE debit IS NOT NULL ORDER BY place
)
INSERT INTO outbox (id, body)
SELECT request_id, body FROM given JOIN recorded USING (request_id) ORDER BY place
"""


def columns_of(rows: Sequence[Rows]) -> list[Sequence[Any]]:
    """Return the parameters of `RECORD`; of several rows of one request the first counts."""
    first: dict[str, Rows] = {}
    for row in rows:
        first.setdefault(row.event[0], row)
    whole = [
        (*row.request, *(row.posting[1:3] if row.posting else (None, None)), row.event[1])
        for row in first.values()
    ]
    return [
        column if name in _NUMBERS or name == "body" else [storable(text) for text in column]
        for name, column in zip((*COLUMNS, *_BESIDE), zip(*whole, strict=True), strict=True)
    ]


def storable(value: Any) -> Any:
    """Return a parameter as PostgreSQL takes it: its texts have no NUL (events do, as bytes)."""
    if type(value) is str and "\0" in value:
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    return value
