"""What the ledger does to a database, apart from any database: generators that ask for statements.

    def steps() -> Steps[int]:
        rows = yield Ask("SELECT count(*) FROM request WHERE account = ?", ("acme",))
        return rows[0][0]

Either database runs them, each in one transaction: what is asked is executed, its rows are sent
back in. Statements are of the SQL that SQLite and PostgreSQL share, with `?` for parameters.
A generator may raise a `MiddlewareError` before its first write, never after it: its neighbours of
the same transaction go on.
"""

from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

from inf_middleware.ledgers.rows import Rows

T = TypeVar("T")


class Ask(NamedTuple):
    """One statement; `many` runs it for each of `params`, and no rows come back."""

    sql: str
    params: Sequence[Any] = ()
    many: bool = False


class Record(NamedTuple):
    """Write records, postings and events; what is written already stays as it is.

    Most of a ledger's work, so each database does it in its own fastest way. What comes back are
    ids of those that were there: all of rows that may come `again`, of others where that is free.
    """

    rows: Sequence[Rows]


Steps: TypeAlias = Generator[Ask | Record, list[Any], T]

# Makes the steps anew for each try.
Work: TypeAlias = Callable[[], Steps[T]]
