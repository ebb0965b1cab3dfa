"""An old file opens: brought forward whole, or left as it is."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from inf_middleware import open_ledger
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers import reconcile, sqlite_steps
from inf_middleware.ledgers.connection import SCHEMA_VERSION, connect, connect_to_read
from inf_middleware.ledgers.filesystem import network_filesystem
from inf_middleware.ledgers.rows import COLUMNS, Rows
from inf_middleware.ledgers.spool import SpoolingLedger
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of
from tests.kit import reading
from tests.ledgers.test_spool import handed_over


def old_ledger(path: Path, version: int = 1) -> Path:
    """Make a file as an earlier version of this library wrote it; 1 is the first."""
    dumped = Path(__file__).parent / f"schema-{version}.sql"
    with reading(path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) as db:
        db.execute(dumped.read_text("utf-8"))
    return path


def rows_of(db: apsw.Connection, table: str) -> list[Any]:
    return sorted(db.execute(f"SELECT * FROM {table}"))  # noqa: S608 - names of ours


def test_an_old_file_opens_with_its_history_and_its_balances(tmp_path: Path) -> None:
    path = old_ledger(tmp_path / "old.db")
    with reading(path) as db:
        before = db.execute("SELECT * FROM request").fetchall()
        events = db.execute("SELECT * FROM outbox").fetchall()

    async def go() -> dict[str, int]:
        async with await open_ledger(f"sqlite:///{path}") as ledger:
            await ledger.recharge("acme", "1", reference="r")
            return {account.account: account.balance_nano for account in await ledger.accounts()}

    balances = asyncio.run(go())
    assert balances == {"acme": 10**9 - 3 * 12_000_000, "beta": -600_000}
    with reading(path) as db:
        assert db.execute("SELECT schema_version FROM meta").fetchall() == [(SCHEMA_VERSION,)]
        assert db.execute("SELECT * FROM request LIMIT 5").fetchall() == before
        assert db.execute("SELECT * FROM outbox LIMIT 5").fetchall() == events
        assert db.execute("SELECT * FROM sink_cursor").fetchall() == [("mine", 2)]


def test_accounts_of_an_old_file_keep_their_records(tmp_path: Path) -> None:
    path = old_ledger(tmp_path / "old.db", 2)
    connect(path).close()
    with reading(path) as db:
        assert db.execute(
            "SELECT account, kind, amount_nano FROM request_by_account ORDER BY account, seq"
        ).fetchall() == [
            ("acme", "recharge", 1_000_000_000),
            ("acme", "usage", 1_200_000),
            ("acme", "usage", 1_210_000),
            ("acme", "usage", 1_220_000),
            ("beta", "usage", 0),
        ]
        assert db.execute("SELECT sorted_seq FROM meta").fetchall() == [(5,)]


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION))
def test_a_new_file_and_one_brought_forward_have_one_schema(version: int, tmp_path: Path) -> None:
    def schema(path: Path) -> list[tuple[str, str]]:
        connect(path).close()
        with reading(path) as db:
            return db.execute(
                "SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name"
            ).fetchall()

    assert schema(tmp_path / "new.db") == schema(old_ledger(tmp_path / "old.db", version))


def test_an_old_file_is_not_changed_by_reading_it(tmp_path: Path) -> None:
    path = old_ledger(tmp_path / "old.db")
    with pytest.raises(LedgerUnavailable, match="inf-middleware ledger migrate"):
        connect_to_read(path)
    with reading(path) as db:
        assert db.execute("SELECT schema_version FROM meta").fetchall() == [(1,)]


def test_a_migration_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = old_ledger(tmp_path / "old.db")
    with reading(path) as db:
        db.execute("CREATE TABLE balance (x)")  # in the way of one of ours
    with pytest.raises(LedgerUnavailable, match="balance"):
        connect(path)
    with reading(path) as db:
        assert db.execute("SELECT schema_version FROM meta").fetchall() == [(1,)]
        assert not db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'account'").fetchall()


# What versions up to 3 write beside the record, one statement each.
WRITTEN_BEFORE = (
    "INSERT INTO posting VALUES (9, 'x', 'account:acme', 'revenue:usage', 5, 'CNY')",
    "INSERT INTO outbox (id, body) VALUES ('x', x'7b7d') ON CONFLICT (id) DO NOTHING",
)


@pytest.mark.parametrize("statement", WRITTEN_BEFORE)
def test_workers_of_an_old_version_write_no_bill_into_a_migrated_file_and_know_it(
    statement: str, tmp_path: Path
) -> None:
    path = old_ledger(tmp_path / "old.db", 3)
    with reading(path) as db:
        db.execute(f"SAVEPOINT unchanged; {statement}; ROLLBACK TO unchanged; RELEASE unchanged")
        connect(path).close()
        with pytest.raises(apsw.SQLError, match="a view"):
            db.execute(statement)


def record_of_version_3(db: apsw.Connection, rows: Sequence[Rows]) -> None:
    """Write bills as version 3 did."""
    places = ", ".join("?" * len(COLUMNS))
    db.executemany(
        f"INSERT INTO request ({', '.join(COLUMNS)}) VALUES ({places})"  # noqa: S608 - ours
        " ON CONFLICT (request_id) DO NOTHING",
        [row.request for row in rows],
    )
    db.executemany(
        WRITTEN_BEFORE[1].replace("'x', x'7b7d'", "?, ?"),
        [(row.request_id, row.event) for row in rows],
    )


def test_a_bill_of_a_worker_of_an_old_version_waits_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = old_ledger(tmp_path / "old.db", 3)
    bill = event_of(5)

    async def by_the_old() -> None:
        ledger = SpoolingLedger(SqliteLedger(path), tmp_path / "spool")
        with pytest.raises(LedgerUnavailable):
            await ledger.settle(bill)
        await ledger.keep(bill)
        await ledger.aclose()

    async def by_the_new() -> None:
        ledger = SpoolingLedger(SqliteLedger(path), tmp_path / "spool")
        await ledger.settle(event_of(6))
        await handed_over(path, 7)
        await ledger.aclose()

    with monkeypatch.context() as patched:
        patched.setattr(sqlite_steps, "record", record_of_version_3)
        asyncio.run(by_the_old())
    with reading(path) as db:
        found = "SELECT count(*) FROM request JOIN outbox ON id = request_id WHERE id = ?"
        assert db.execute(found, (bill.id,)).fetchall() == [(0,)]
        assert db.execute("SELECT count(*) FROM request").fetchall() == [(5,)]
        asyncio.run(by_the_new())
        assert db.execute(found, (bill.id,)).fetchall() == [(1,)]


def test_workers_of_an_old_version_still_read_a_migrated_file(tmp_path: Path) -> None:
    path = old_ledger(tmp_path / "old.db", 3)
    asked = (  # what the relay, a voided hold and reports of version 3 ask
        "SELECT seq, body FROM outbox WHERE seq > 1 ORDER BY seq LIMIT 500",
        "SELECT body FROM request JOIN outbox ON outbox.id = request.request_id ORDER BY body",
        "SELECT id, body FROM outbox ORDER BY id",
        "SELECT request_id, debit, credit, amount_nano, currency FROM posting ORDER BY seq",
        "SELECT * FROM inf_usage ORDER BY request_id",
        "SELECT * FROM inf_account ORDER BY account",
    )
    with reading(path) as db:
        before = [db.execute(sql).fetchall() for sql in asked]
        connect(path).close()
        assert [db.execute(sql).fetchall() for sql in asked] == before


# What version 3 does every some thousand records.
SORTED = (
    "INSERT INTO account_request SELECT account, settled_at, seq FROM request WHERE seq <= 4;"
    " UPDATE meta SET sorted_seq = 4"
)


@pytest.mark.parametrize("sort", [SORTED, ""], ids=["sorted", "unsorted"])
def test_a_migrated_file_goes_on_where_its_sinks_were(sort: str, tmp_path: Path) -> None:
    path = old_ledger(tmp_path / "old.db", 3)
    kept = ("sink_cursor", "sink_attempt", "replay", "dead_letter")
    with reading(path) as db:
        db.execute(sort)
        places = dict(db.execute("SELECT id, seq FROM outbox"))
        assert sorted(places.values()) == [1, 2, 5, 6, 7]  # told again, some had no event
        before = [rows_of(db, table) for table in kept]
    again = event_of(5)

    async def go() -> None:
        async with await open_ledger(f"sqlite:///{path}") as book:
            assert [seq for seq, _ in await book.ledger.pending("mine", 9)] == [5, 6, 7]
            report = await book.ledger.read(reconcile.checks)
            assert [check.check for check in report if not check.ok] == [
                "no sink is behind by more than a day"
            ]
            await book.ledger.settle(again)
            await book.ledger.settle(again)
            assert [seq for seq, _ in await book.ledger.pending("mine", 9)] == [5, 6, 7, 8]

    asyncio.run(go())
    with reading(path) as db:
        assert dict(db.execute("SELECT request_id, seq FROM request WHERE seq < 8")) == places
        assert [rows_of(db, table) for table in kept] == before
        assert rows_of(db, "request_by_account") == rows_of(db, "request_by_time")
        assert rows_of(db, "request_by_account") == rows_of(db, "request")
        assert db.execute(
            "SELECT request.seq, transfer.amount_nano FROM request LEFT JOIN transfer USING (seq)"
            " ORDER BY request.seq"
        ).fetchall() == [
            (1, 1_000_000_000),
            (2, 1_200_000),
            (5, 1_210_000),
            (6, None),
            (7, 1_230_000),
            (8, int(again.amount_nano)),
        ]


@pytest.mark.parametrize(
    ("harm", "check", "difference"),
    [
        (
            "INSERT INTO posting VALUES (9, 'x', 'account:x', 'revenue:usage', 5, 'CNY')",
            "each record above 0 has one posting of its amount, and no other has one",
            "place -9: no record, posting 5",
        ),
        (
            "INSERT INTO outbox VALUES (3, 'x', x'7b7d')",
            "each record has one event, and each event a record",
            "place 3: no record",
        ),
        (
            "DELETE FROM outbox WHERE seq = 6",
            "each record has one event, and each event a record",
            "{2}: no event",
        ),
        (  # whose place is that of another's event: it gets out of the way
            "DELETE FROM outbox WHERE seq = 5; INSERT INTO outbox VALUES (3, 'x', x'7b7d')",
            "each record has one event, and each event a record",
            "{1}: no event",
        ),
    ],
)
def test_what_was_wrong_with_an_old_file_is_still_told_of_the_new_one(
    harm: str, check: str, difference: str, tmp_path: Path
) -> None:
    path = old_ledger(tmp_path / "old.db", 3)
    with reading(path) as db:
        ids = [row[0] for row in db.execute("SELECT request_id FROM request ORDER BY seq")][1:]
        db.execute(harm)

    async def go() -> dict[str, tuple[str, ...]]:
        async with await open_ledger(f"sqlite:///{path}") as book:
            await book.ledger.settle(event_of(5, account="later"))  # goes on all the same
            found = await book.ledger.read(reconcile.checks)
        return {one.check: one.differences for one in found if not one.ok}

    found = asyncio.run(go())
    assert difference.format(*ids) in found[check]
    with reading(path) as db:
        assert db.execute(
            "SELECT count(*) FROM request JOIN outbox ON outbox.id = request.request_id"
            " JOIN posting ON posting.request_id = request.request_id WHERE account = 'later'"
        ).fetchall() == [(1,)]


MOUNTS = """\
/dev/vda1 / ext4 rw 0 0
server:/money /mnt/money nfs4 rw 0 0
/dev/vdb /mnt/money/local ext4 rw 0 0
//srv/share /mnt/a\\040b cifs rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/lib/l.db", None),
        ("/mnt/money/l.db", "nfs4"),
        ("/mnt/money/local/l.db", None),
        ("/mnt/a b/l.db", "cifs"),
        ("/mnt/moneyless/l.db", None),
    ],
)
def test_a_network_file_system_is_told(path: str, kind: str | None, tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    assert network_filesystem(Path(path), mounts) == kind


def test_a_system_that_tells_no_mounts_is_trusted(tmp_path: Path) -> None:
    assert network_filesystem(Path("/x"), tmp_path / "none") is None
