"""An old file opens: brought forward whole, or left as it is."""

import asyncio
from pathlib import Path

import apsw
import pytest

from inf_middleware import open_ledger
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.connection import SCHEMA_VERSION, connect, connect_to_read
from inf_middleware.ledgers.filesystem import network_filesystem
from tests.kit import reading


def old_ledger(path: Path, version: int = 1) -> Path:
    """Make a file as an earlier version of this library wrote it; 1 is the first."""
    dumped = Path(__file__).parent / f"schema-{version}.sql"
    with reading(path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE) as db:
        db.execute(dumped.read_text("utf-8"))
    return path


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


def test_workers_of_the_old_version_still_settle_into_a_migrated_file(tmp_path: Path) -> None:
    path = old_ledger(tmp_path / "old.db")
    connect(path).close()
    with reading(path) as db:  # what version 0.1.0 writes: it knows nothing of balances
        db.execute(
            "INSERT INTO posting (request_id, debit, credit, amount_nano, currency)"
            " VALUES ('x', 'account:acme', 'revenue:usage', 5, 'CNY')"
        )
        owed = db.execute("SELECT balance_nano FROM balance WHERE account = 'acme'").fetchone()
    assert owed == (-3 * 12_000_000 - 5,)


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
