"""Steps run on a connection to SQLite: in a transaction of their own, with others, or to read."""

import contextlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import apsw

from inf_middleware.domain.errors import LedgerUnavailable, MiddlewareError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.ledgers.recording import record
from inf_middleware.ledgers.rows import Rows, rows_of
from inf_middleware.ledgers.settling import settle_all
from inf_middleware.ledgers.steps import Record, Steps, T, Work

# Something to be written: a settlement, or any work.
Item: TypeAlias = BillingEvent | Work[Any]

# What became of an item: its result (None of a settlement), or why there is none.
Outcome: TypeAlias = Any | MiddlewareError


def run(db: apsw.Connection, steps: Steps[T]) -> T:
    """Run steps on a connection, inside whatever transaction is open."""
    rows: list[Any] = []
    try:
        ask = next(steps)
        while True:
            if isinstance(ask, Record):
                rows = record(db, ask.rows)
            elif ask.many:
                db.executemany(ask.sql, ask.params)
                rows = []
            else:
                rows = db.execute(ask.sql, ask.params).fetchall()
            ask = steps.send(rows)
    except StopIteration as stop:
        result: T = stop.value
        return result


def transact(db: apsw.Connection, steps: Steps[T]) -> T:
    """Run steps in a transaction of their own."""
    with _transaction(db):
        return run(db, steps)


def read(db: apsw.Connection, work: Work[T]) -> T:
    """Run steps in a transaction that only reads: all of them see one moment."""
    db.execute("BEGIN")
    try:
        return run(db, work())
    finally:
        if not db.get_autocommit():
            db.execute("ROLLBACK")


def transact_all(db: apsw.Connection, items: Sequence[Item]) -> list[Outcome]:
    """Write several in one transaction, settlements next to each other together.

    What can be told to fail before is told before, and fails none of the others.
    """
    # Before the file is locked, so that other processes may write meanwhile; and not where it is
    # handed over: the event loop has better things to do.
    prepared = [_prepared(item) for item in items]
    outcomes: list[Outcome] = []
    settling: list[Rows] = []
    with _transaction(db):
        for work in prepared:
            if isinstance(work, Rows):
                settling.append(work)
                outcomes.append(None)
                continue
            if isinstance(work, LedgerUnavailable):
                outcomes.append(work)
                continue
            if settling:
                run(db, settle_all(settling))
                settling = []
            try:
                outcomes.append(run(db, work()))
            except MiddlewareError as error:  # raised before its first write
                outcomes.append(error)
        if settling:
            run(db, settle_all(settling))
    return outcomes


@contextlib.contextmanager
def _transaction(db: apsw.Connection) -> Any:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if not db.get_autocommit():  # some errors have rolled back already
            db.execute("ROLLBACK")
        raise


def _prepared(item: Item) -> Rows | LedgerUnavailable | Work[Any]:
    if not isinstance(item, BillingEvent):
        return item
    try:
        return rows_of(item)
    except (ValueError, TypeError, OverflowError) as error:
        return LedgerUnavailable(f"{item.id} cannot be recorded: {error}")
