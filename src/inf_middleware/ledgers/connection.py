"""A connection to the ledger's file, with the settings that make "committed" mean "durable"."""

import contextlib
import ctypes
import os
import time
from importlib.resources import files
from pathlib import Path

import apsw

from inf_middleware.domain.errors import LedgerMissing, LedgerUnavailable
from inf_middleware.ledgers.filesystem import network_filesystem

# One file per version, `sqlite-N.sql`, run in order: a new ledger by all, an old one by the rest.
SCHEMA_VERSION = 4

# Before it two writing processes can corrupt a file: sqlite.org/wal.html, "The WAL-Reset Bug".
SQLITE_MIN = (3, 51, 3)

# After these the connection is not to be trusted: it is closed, and opened anew for the next batch.
FATAL = (apsw.IOError, apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError, apsw.FullError)

# How long one process waits for another's commit: many fsyncs, and below a caller's patience.
BUSY_TIMEOUT_S = 2.0

# Pages of the log after which what it holds is brought into the file, within a commit: 32 MB. What
# many commits write, such as the ends of indices, is then written there once; with SQLite's own
# 1,000 a third of the time went into that.
_CHECKPOINT_PAGES = 8_000

# Between two tries: about one fsync. SQLite's own waits grow to 100 ms, and whoever has waited for
# long then misses every gap that a busy neighbour leaves between its commits.
_BUSY_WAIT_S = 0.0005


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
    where = network_filesystem(path)
    if where is not None:
        raise LedgerUnavailable(
            f"the ledger {path} is on a network file system ({where}), whose locks do not hold:"
            " keep it on a disk of this host, or use postgresql:// for several hosts"
        )
    fault = _denied(path, writes=True)
    if fault is not None:
        raise LedgerUnavailable(f"the ledger {path} cannot be used: {fault}")
    try:
        db = apsw.Connection(str(path))
    except apsw.Error as error:
        raise LedgerUnavailable(f"the ledger {path} cannot be opened: {error}") from error
    try:
        db.set_busy_handler(_wait)
        _configure(db, path)
        _migrate(db, path)
        # From here on what would undo a statement of several rows stays in memory: it is a few
        # pages, and cost a commit of 64 five writes to a file. Of a migration it may be gigabytes.
        db.pragma("temp_store", "memory")
    except apsw.Error as error:
        db.close()
        raise LedgerUnavailable(f"the ledger {path} cannot be used: {error}") from error
    except LedgerUnavailable:
        db.close()
        raise
    return db


def check_name(db: apsw.Connection, path: Path) -> None:
    """See that an open file has its name still: what is written to it without is found by nobody.

    It asks the file system, in 2 µs.

    Raises:
        LedgerUnavailable: It was deleted, or another took its place.
    """
    moved = ctypes.c_int()
    db.file_control("main", apsw.SQLITE_FCNTL_HAS_MOVED, ctypes.addressof(moved))
    if moved.value:
        raise LedgerUnavailable(
            f"the ledger {path} was deleted or replaced while it was in use: put the file back, or"
            " stop all that use it and start them anew"
        )


def connect_to_read(path: Path) -> apsw.Connection:
    """Open an existing ledger's file for reading only.

    Raises:
        LedgerUnavailable: It is not there, or is no ledger of this version.
    """
    db, found = _open_to_read(path)
    if found != SCHEMA_VERSION:
        db.close()
        raise LedgerUnavailable(_wrong_version(path, found))
    return db


def check_file(path: Path) -> None:
    """See that a ledger's file could be opened for writing; nothing is made or changed.

    Raises:
        LedgerUnavailable: It is there, and is none, or a newer one, or may not be used.
    """
    fault = _denied(path, writes=True)
    if fault is not None:
        raise LedgerUnavailable(f"the ledger {path} cannot be used: {fault}")
    with contextlib.suppress(LedgerMissing):
        db, found = _open_to_read(path)
        db.close()
        if found is not None and found > SCHEMA_VERSION:
            raise LedgerUnavailable(_wrong_version(path, found))


def version_of(path: Path) -> int:
    """Return the schema version of an existing ledger's file.

    Raises:
        LedgerUnavailable: It is not there, or is no ledger.
    """
    db, found = _open_to_read(path)
    db.close()
    if found is None:
        raise LedgerUnavailable(_wrong_version(path, found))
    return found


def _open_to_read(path: Path) -> tuple[apsw.Connection, int | None]:
    fault = _denied(path, writes=False)
    if fault is not None:
        raise LedgerUnavailable(f"the ledger {path} cannot be read: {fault}")
    if not os.access(path, os.F_OK) or not path.is_file():
        raise LedgerMissing(f"there is no ledger at {path}")
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        db.set_busy_handler(_wait)
        return db, _version(db)
    except (apsw.CantOpenError, apsw.BusyError) as error:
        raise LedgerUnavailable(f"the ledger {path} cannot be opened: {error}") from error
    except apsw.Error as error:
        raise LedgerUnavailable(f"{path} is no ledger: {error}") from error


def _denied(path: Path, *, writes: bool) -> str | None:
    """Say which permission lacks for a file and what SQLite keeps beside it; None where none does.

    Its own errors tell neither which file they are about nor that it is permissions.
    """
    folder = path.absolute().parent
    beside = [Path(f"{path}{end}") for end in ("", "-wal", "-shm")]
    if _lacks(folder, os.X_OK):
        return f"there is no permission to read {folder}"
    for one in beside:
        if _lacks(one, os.R_OK):
            return f"there is no permission to read {one}"
        if writes and _lacks(one, os.W_OK):
            return f"there is no permission to write {one}"
    makes = writes or os.access(path, os.F_OK)  # what is beside it is made for readers, too
    if makes and _lacks(folder, os.W_OK) and not all(os.access(one, os.F_OK) for one in beside):
        return f"there is no permission to write {folder}"
    return None


def _lacks(path: Path, mode: int) -> bool:
    return os.access(path, os.F_OK) and not os.access(path, mode, effective_ids=True)


def _wait(tries: int) -> bool:
    time.sleep(_BUSY_WAIT_S)
    return tries * _BUSY_WAIT_S < BUSY_TIMEOUT_S


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
    db.pragma("wal_autocheckpoint", _CHECKPOINT_PAGES)
    db.pragma("synchronous", "full")
    if (mode, db.pragma("synchronous")) != ("wal", 2):
        raise LedgerUnavailable(
            f"the ledger {path} is in journal mode {mode}, synchronous"
            f" {db.pragma('synchronous')}, and must be in wal, 2: is it on a network file system?"
        )


def _migrate(db: apsw.Connection, path: Path) -> None:
    found = _version(db)
    if found is None or found < SCHEMA_VERSION:
        db.execute("BEGIN IMMEDIATE")
        try:
            for version in range((_version(db) or 0) + 1, SCHEMA_VERSION + 1):
                schema = files("inf_middleware") / "ledgers" / f"sqlite-{version}.sql"
                db.execute(schema.read_text("utf-8"))
            db.execute("COMMIT")
        except BaseException:
            if not db.get_autocommit():  # some errors have rolled back already
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
    if found < SCHEMA_VERSION:
        return (
            f"the ledger {path} has schema version {found}, and version {SCHEMA_VERSION} is read"
            " here: run `inf-middleware ledger migrate`"
        )
    return (
        f"the ledger {path} has schema version {found}, and this library writes version"
        f" {SCHEMA_VERSION}: use the version of inf-middleware that wrote it, or a later one"
    )
