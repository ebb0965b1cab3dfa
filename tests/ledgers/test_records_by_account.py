"""The records of an account, or of some time: found without looking at others, latest included."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest

from inf_middleware.ledgers import reports
from inf_middleware.ledgers.connection import connect
from inf_middleware.ledgers.recording import UNSORTED_MAX
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.settling import settle_all
from inf_middleware.ledgers.steps import Ask
from inf_middleware.ledgers.writer import transact
from tests.events import event_of

ACCOUNTS = 7


@pytest.fixture
def db(tmp_path: Path) -> Iterator[apsw.Connection]:
    connection = connect(tmp_path / "ledger.db")
    yield connection
    connection.close()


def settle(db: apsw.Connection, first: int, count: int) -> None:
    transact(
        db,
        settle_all(
            [
                rows_of(event_of(number, account=f"a{number % ACCOUNTS}"))
                for number in range(first, first + count)
            ]
        ),
    )


def unsorted(db: apsw.Connection) -> int:
    ((count,),) = db.execute("SELECT (SELECT max(seq) FROM request) - sorted_seq FROM meta")
    return int(count)


def test_each_record_is_found_by_its_account_sorted_or_not(db: apsw.Connection) -> None:
    batch = UNSORTED_MAX // 4
    seen = []
    for number in range(6):
        settle(db, number * batch, batch)
        seen.append(unsorted(db))
        for view in ("request_by_account", "request_by_time"):
            found = f"SELECT * FROM {view} ORDER BY seq"  # noqa: S608 - names of ours
            assert db.execute(found).fetchall() == (
                db.execute("SELECT * FROM request ORDER BY seq").fetchall()
            )
    settle(db, 0, 10)  # told again
    assert seen == [batch, 2 * batch, 3 * batch, 4 * batch, 0, batch]
    for account in range(ACCOUNTS):
        found = "SELECT count(*), sum(amount_nano) FROM {} WHERE account = ?"
        both = [
            db.execute(found.format(table), (f"a{account}",)).fetchall()
            for table in ("request", "request_by_account")
        ]
        assert both[0] == both[1]


@pytest.mark.parametrize(
    "steps",
    [
        lambda: reports.usage(["model"], account="a1", period=reports.Period("2026", "2027")),
        lambda: reports.usage(["account"], account="a1", period=reports.Period("2026", "2027")),
        lambda: reports.statement("a1", "CNY", "2026", "2027"),
        lambda: reports.events(0, 10, account="a1", period=reports.Period("2026", "2027")),
    ],
    ids=["usage", "usage by account", "statement", "export"],
)
def test_a_report_on_an_account_looks_at_no_more_of_others_than_what_is_unsorted(
    steps: Any, db: apsw.Connection
) -> None:
    settle(db, 0, 20)
    plans = plans_of(steps, db)
    assert plans
    for plan in plans:
        assert any("account_request USING PRIMARY KEY (account=?" in step for step in plan)
        through_view = any(step.startswith("CO-ROUTINE request_by_account") for step in plan)
        scans = {step for step in plan if step.startswith("SCAN")} - {"SCAN meta", "SCAN charges"}
        # Under its name the view is meant: what it has found.
        assert not scans or (through_view and scans <= {"SCAN request", "SCAN request_by_account"})


def test_a_report_on_a_month_looks_at_no_more_of_others_than_what_is_unsorted(
    db: apsw.Connection,
) -> None:
    settle(db, 0, 20)
    period = reports.Period("2026-11", "2026-12")
    plans = plans_of(lambda: reports.usage(["model"], account=None, period=period), db)
    (plan,) = plans
    assert sum("time_request USING PRIMARY KEY (settled_at>?" in step for step in plan) >= 1
    scans = {step for step in plan if step.startswith("SCAN")}
    assert scans <= {"SCAN meta", "SCAN charges"}


def plans_of(steps: Any, db: apsw.Connection) -> list[list[str]]:
    """Run steps, and return how SQLite does each of them."""
    plans: list[list[str]] = []

    def planned(ask: Ask) -> list[Any]:
        plan = db.execute("EXPLAIN QUERY PLAN " + ask.sql, ask.params)
        plans.append([step for _, _, _, step in plan])
        return db.execute(ask.sql, ask.params).fetchall()

    asking = steps()
    with contextlib.suppress(StopIteration):
        rows = None
        while True:
            rows = planned(asking.send(rows))
    return plans
