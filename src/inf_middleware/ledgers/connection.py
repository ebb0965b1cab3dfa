"""A connection to the ledger's file, with the settings that make "committed" mean "durable"."""

import time
from importlib.resources import files
from pathlib import Path

import apsw

from inf_middleware.domain.errors import LedgerUnavailable

SCHEMA_VERSION = 1

# Before it two writing processes can corrupt a file: sqlite.org/wal.html, "The WAL-Reset Bug".
SQLITE_MIN = (3, 51, 3)

# How long one process waits for another's commit: many fsyncs, and below a caller's patience.
BUSY_TIMEOUT_S = 2.0


def connect(path: Path) -> apsw.Connection:
    """Open the ledger's file for writing, made where it is not there yet.

    Raises:
        LedgerUnavailable: It cannot be opened, is no ledger, or cannot be made durable.
    """
    version = tuple(map(int, apsw.sqlite_lib_version().split(".")))
    if version < SQLITE_MIN:
        raise LedgerUnavailable(
            f"SQLite {apsw.sqlite_lib_version()} can corrupt a file that two processes write;"
            f" {'.'.join(map(str, SQLITE_MIN))} or later is needed: install a current apsw"
        )
    try:
        db = apsw.Connection(str(path))
    except apsw.Error as error:
        raise LedgerUnavailable(f"the ledger {path} cannot be opened: {error}") from error
    try:
        db.set_busy_timeout(round(BUSY_TIMEOUT_S * 1000))
        _configure(db, path)
        _create(db, path)
        # Made where they are missing: a file of an earlier version gets them so.
        db.execute((files("inf_middleware") / "ledgers" / "deliveries.sql").read_text("utf-8"))
    except apsw.Error as error:
        db.close()
        raise LedgerUnavailable(f"the ledger {path} cannot be used: {error}") from error
    except LedgerUnavailable:
        db.close()
        raise
    return db


def connect_to_read(path: Path) -> apsw.Connection:
    """Open an existing ledger's file for reading only.

    Raises:
        LedgerUnavailable: It is not there, or is no ledger of a version known here.
    """
    if not path.is_file():
        raise LedgerUnavailable(f"there is no ledger at {path}")
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_timeout(round(BUSY_TIMEOUT_S * 1000))
        found = _version(db)
    except apsw.Error as error:
        raise LedgerUnavailable(f"{path} is no ledger: {error}") from error
    if found != SCHEMA_VERSION:
        db.close()
        raise LedgerUnavailable(_wrong_version(path, found))
    return db


def _configure(db: apsw.Connection, path: Path) -> None:
    db.pragma("trusted_schema", False)
    # Another process that switches at the same moment makes this one busy at once, whatever the
    # time-out: tried again until then.
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            mode = db.pragma("journal_mode", "wal")
            break
        except apsw.BusyError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    db.pragma("synchronous", "full")
    if (mode, db.pragma("synchronous")) != ("wal", 2):
        raise LedgerUnavailable(
            f"the ledger {path} is in journal mode {mode}, synchronous"
            f" {db.pragma('synchronous')}, and must be in wal, 2: is it on a network file system?"
        )


def _create(db: apsw.Connection, path: Path) -> None:
    found = _version(db)
    if found is None:
        db.execute("BEGIN IMMEDIATE")
        try:
            if _version(db) is None:  # nobody was faster
                schema = files("inf_middleware") / "ledgers" / "schema.sql"
                db.execute(schema.read_text("utf-8"))
            db.execute("COMMIT")
        except BaseException:
            db.execute("ROLLBACK")
            raise
        found = _version(db)
    if found != SCHEMA_VERSION:
        raise LedgerUnavailable(_wrong_version(path, found))


def _version(db: apsw.Connection) -> int | None:
    table = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'meta'").fetchone()
    if table is None:
        return None
    row = db.execute("SELECT schema_version FROM meta").fetchone()
    return None if row is None else int(row[0])


def _wrong_version(path: Path, found: int | None) -> str:
    if found is None:
        return f"{path} is no ledger"
    return (
        f"the ledger {path} has schema version {found}, and this library writes version"
        f" {SCHEMA_VERSION}: use the version of inf-middleware that wrote it, or a later one"
    )
