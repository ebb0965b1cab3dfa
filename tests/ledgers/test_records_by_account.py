"""The records of an account, or of some time: found without looking at others, latest included."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import pytest
from msgspec.structs import replace

from inf_middleware.ledgers import exports, reports, statements
from inf_middleware.ledgers.connection import connect
from inf_middleware.ledgers.recording import UNSORTED_MAX
from inf_middleware.ledgers.rows import rows_of
from inf_middleware.ledgers.settling import settle_all
from inf_middleware.ledgers.sqlite_steps import run, transact
from inf_middleware.ledgers.steps import Ask
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
        lambda: statements.statement("a1", "CNY", "2026", "2027"),
        lambda: exports.events(0, 10, account="a1", period=reports.Period("2026", "2027")),
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


def test_pages_of_a_period_have_each_of_its_events_once_sorted_or_not(db: apsw.Connection) -> None:
    count = UNSORTED_MAX + 1_100
    moments = [f"2026-11-{number * 5 % 28 + 1:02d}T00:00:00.000000Z" for number in range(count)]
    bills = [replace(event_of(n), settled_at=at) for n, at in enumerate(moments)]
    for first in range(0, count, 1_000):  # so that the last hundred are not sorted
        transact(db, settle_all([rows_of(bill) for bill in bills[first : first + 1_000]]))
    assert unsorted(db) > 0
    period = reports.Period("2026-11-05", "2026-11-07")
    bounds = run(db, exports.places(period))
    assert bounds is not None
    place, last = bounds[0] - 1, bounds[1]
    found: list[str] = []
    while page := run(db, exports.events(place, 50, account=None, period=period, last=last)):
        found += [event.id for _, event in page]
        place = page[-1][0]
    of_days = [bill.id for bill in bills if "2026-11-05" <= bill.settled_at < "2026-11-07"]
    assert found == of_days
    assert run(db, exports.places(reports.Period("2027"))) is None


def test_a_page_of_a_period_looks_at_no_event_before_its_first_place_or_after_its_last(
    db: apsw.Connection,
) -> None:
    settle(db, 0, 20)
    period = reports.Period("2026-11", "2026-12")
    (bounds,) = plans_of(lambda: exports.places(period), db)
    assert any("time_request USING PRIMARY KEY (settled_at>?" in step for step in bounds)
    assert {step for step in bounds if step.startswith("SCAN")} <= {"SCAN meta", "SCAN request"}
    page = lambda: exports.events(0, 10, account=None, period=period, last=5)  # noqa: E731
    (plan,) = plans_of(page, db)
    assert any("INTEGER PRIMARY KEY (rowid>? AND rowid<?)" in step for step in plan)
    assert not [step for step in plan if step.startswith("SCAN")]


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
