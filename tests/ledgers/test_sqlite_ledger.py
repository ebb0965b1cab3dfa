"""Promise 4 in the embedded ledger: one record, one posting, one event, durable when said so."""

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inf_middleware import BillingEvent, ConfigError, Usage
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ledgers.writer import BATCH_MAX
from tests.events import event_of
from tests.kit import reading, records_of

ROOT = Path(__file__).parent.parent.parent


def run(step: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(step)


async def settle_all(ledger: SqliteLedger, events: list[BillingEvent]) -> list[Any]:
    try:
        return await asyncio.gather(
            *(ledger.settle(event) for event in events), return_exceptions=True
        )
    finally:
        await ledger.aclose()


def count(path: Path, table: str) -> int:
    with reading(path) as db:
        rows = db.execute(f"SELECT count(*) FROM {table}")  # noqa: S608 - names of ours
        return int(rows.fetchone()[0])


def test_constructing_opens_nothing(tmp_path: Path) -> None:
    SqliteLedger(tmp_path / "a.db")
    assert list(tmp_path.iterdir()) == []


def test_a_settled_call_is_a_record_a_posting_and_an_event(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    event = event_of(metadata={"team": "红"})
    run(settle_all(SqliteLedger(path), [event]))
    (record,) = records_of(path)
    assert record["request_id"] == event.id
    assert record["amount_nano"] == int(event.amount_nano)
    assert record["metadata"] == '{"team":"红"}'
    with reading(path) as db:
        assert db.execute("SELECT debit, credit, amount_nano FROM posting").fetchall() == [
            ("account:acme", "revenue:usage", int(event.amount_nano))
        ]
        assert db.execute("SELECT id, body FROM outbox").fetchall() == [(event.id, event.encode())]
        assert db.execute("SELECT request_id, amount_nano FROM inf_usage").fetchall() == [
            (event.id, int(event.amount_nano))
        ]


def test_a_call_that_costs_nothing_is_a_record_and_an_event_and_no_posting(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    run(settle_all(SqliteLedger(path), [event_of(usage=Usage(0, 0))]))
    assert [count(path, t) for t in ("request", "posting", "outbox")] == [1, 0, 1]


def test_an_id_is_recorded_once_however_often_it_is_handed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    event, other = event_of(1), event_of(2)
    results = run(settle_all(SqliteLedger(path), [event, other, event, event]))
    results += run(settle_all(SqliteLedger(path), [event]))
    assert results == [None] * 5
    assert [count(path, t) for t in ("request", "posting", "outbox")] == [2, 2, 2]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(usages=st.lists(st.builds(Usage, st.integers(0, 10**9), st.integers(0, 10**9)), max_size=30))
def test_postings_records_and_events_have_one_sum(
    usages: list[Usage], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("sum") / "a.db"
    events = [event_of(number, usage=usage) for number, usage in enumerate(usages)]
    if not events:
        return
    run(settle_all(SqliteLedger(path), events))
    with reading(path) as db:
        postings = [row[0] for row in db.execute("SELECT amount_nano FROM posting")]
        records = [row[0] for row in db.execute("SELECT amount_nano FROM request")]
        bodies = [row[0] for row in db.execute("SELECT body FROM outbox")]
    told = [int(BillingEvent.decode(body).amount_nano) for body in bodies]
    assert sum(postings) == sum(records) == sum(told) == sum(int(e.amount_nano) for e in events)


def test_settlements_that_wait_together_are_committed_together(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "a.db")
    run(settle_all(ledger, [event_of(n) for n in range(200)]))
    assert ledger.commits == 1
    ledger = SqliteLedger(tmp_path / "b.db")
    run(settle_all(ledger, [event_of(n) for n in range(BATCH_MAX * 2)]))
    assert ledger.commits <= 3


def test_one_that_cannot_be_recorded_does_not_fail_its_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    events = [event_of(1), event_of(2, amount_nano=str(2**63)), event_of(3, amount_nano="-1")]
    results = run(settle_all(SqliteLedger(path), [*events, event_of(4)]))
    assert [type(result) for result in results] == [
        type(None),
        LedgerUnavailable,
        LedgerUnavailable,
        type(None),
    ]
    assert count(path, "request") == 2


def test_any_text_is_recorded_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    model = "a\x00b'; DROP TABLE request; --\n\u202e"
    assert run(settle_all(SqliteLedger(path), [event_of(model=model)])) == [None]
    assert records_of(path)[0]["model"] == model


def test_a_cancelled_waiter_disturbs_nobody_and_is_billed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    ledger = SqliteLedger(path)

    async def go() -> None:
        waiting = [asyncio.ensure_future(ledger.settle(event_of(n))) for n in range(3)]
        waiting[1].cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [
            type(None),
            asyncio.CancelledError,
            type(None),
        ]
        await ledger.aclose()

    run(go())
    assert count(path, "request") == 3


def test_what_is_settled_while_the_ledger_is_closed_hangs_nobody(tmp_path: Path) -> None:
    async def go(ledger: SqliteLedger) -> None:
        first = asyncio.ensure_future(ledger.settle(event_of(0)))
        await asyncio.sleep(0)  # handed over: its thread commits
        closing = asyncio.create_task(ledger.aclose())
        await asyncio.sleep(0)
        await asyncio.gather(first, ledger.settle(event_of(1)), closing)
        await ledger.aclose()

    # A shutdown that waits for a thread that waits for it would stop all of the process.
    for number in range(20):
        path = tmp_path / f"{number}.db"
        run(asyncio.wait_for(go(SqliteLedger(path)), 20))
        with reading(path) as db:
            assert db.execute("SELECT count(*) FROM request").fetchall() == [(2,)]


def test_several_event_loops_may_share_a_ledger(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    ledger = SqliteLedger(path)

    async def settle(number: int) -> None:
        await ledger.settle(event_of(number))

    for number in range(3):
        run(settle(number))
    run(ledger.aclose())
    assert count(path, "request") == 3


def test_settings_make_committed_mean_durable(tmp_path: Path) -> None:
    from inf_middleware.ledgers.connection import connect

    with contextlib.closing(connect(tmp_path / "a.db")) as db:
        assert db.pragma("journal_mode") == "wal"
        assert db.pragma("synchronous") == 2  # FULL


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE request SET amount_nano = 0",
        "DELETE FROM request",
        "UPDATE transfer SET amount_nano = 1",
        "DELETE FROM transfer",
        "UPDATE event SET body = x'00'",
        "INSERT INTO transfer SELECT 9, 'a', 'b', 0, 'CNY'",
    ],
)
def test_history_is_append_only(statement: str, tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    run(settle_all(SqliteLedger(path), [event_of()]))
    with reading(path) as db, pytest.raises(apsw.ConstraintError):
        db.execute(statement)


@pytest.mark.parametrize(
    ("uri", "path"),
    [("sqlite:///inf-ledger.db", "inf-ledger.db"), ("sqlite:////var/x.db", "/var/x.db")],
)
def test_a_uri_names_a_file(
    uri: str, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert SqliteLedger.from_uri(uri).path == tmp_path / path


@pytest.mark.parametrize(
    "uri", ["", "x.db", "sqlite://x.db", "sqlite:///", "sqlite:///:memory:", "mysql:///x"]
)
def test_what_is_no_uri_of_a_file_is_refused_in_words(uri: str) -> None:
    with pytest.raises(ConfigError, match=r'write "sqlite:///inf-ledger\.db"'):
        SqliteLedger.from_uri(uri)


def test_a_file_that_is_no_ledger_or_a_newer_one_is_refused_in_words(tmp_path: Path) -> None:
    text = tmp_path / "text.db"
    text.write_text("this is a text, and long enough to be none of SQLite's files" * 20)
    (failure,) = run(settle_all(SqliteLedger(text), [event_of()]))
    assert isinstance(failure, LedgerUnavailable)
    newer = tmp_path / "newer.db"
    run(settle_all(SqliteLedger(newer), [event_of()]))
    with reading(newer) as db:
        db.execute("UPDATE meta SET schema_version = 99")
    (failure,) = run(settle_all(SqliteLedger(newer), [event_of(2)]))
    assert "schema version 99" in str(failure)
    assert count(newer, "request") == 1


CHILD = """
import asyncio, sys
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of

async def settle(ledger, number):
    event = event_of(number, account=sys.argv[2])
    await ledger.settle(event)
    print(event.id, flush=True)

async def main():
    ledger = SqliteLedger(sys.argv[1])
    for start in range(0, int(sys.argv[3]), 16):
        await asyncio.gather(*(settle(ledger, start + n) for n in range(16)))
    await ledger.aclose()

asyncio.run(main())
"""


def child(path: Path, account: str, requests: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CHILD, str(path), account, str(requests)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_no_acknowledged_settlement_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    acknowledged: set[str] = set()
    rng = random.Random(4)
    for round_ in range(5):
        process = child(path, f"round-{round_}", 10**6)
        assert process.stdout is not None
        acknowledged.add(process.stdout.readline().strip())
        time.sleep(rng.uniform(0.02, 0.2))  # the moment of the kill is meant to be any
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate(timeout=20)
        acknowledged.update(line for line in rest.splitlines() if len(line) == 36)
    stored = {record["request_id"] for record in records_of(path)}
    assert len(acknowledged) > 100
    assert acknowledged <= stored
    assert count(path, "outbox") == len(stored) == count(path, "posting")
    with reading(path) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_processes_of_one_host_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    processes = [child(path, f"worker-{n}", 320) for n in range(4)]
    acknowledged: list[str] = []
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        acknowledged += out.split()
    assert len(acknowledged) == len(set(acknowledged)) == 4 * 320
    assert {record["request_id"] for record in records_of(path)} == set(acknowledged)


FULL_DISK = """
import asyncio, resource, signal, sys
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

async def main():
    ledger = SqliteLedger(sys.argv[1])
    await ledger.settle(event_of(0))
    recorded = {0}
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
    failed = set()
    for number in range(1, 400):
        try:
            await ledger.settle(event_of(number, metadata={"pad": "x" * 1000}))
            recorded.add(number)
        except LedgerUnavailable:
            failed.add(number)
    assert failed, "the disk was never full"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    await ledger.settle(event_of(1000))
    recorded.add(1000)
    await ledger.aclose()
    print(len(recorded))

asyncio.run(main())
"""


def test_a_full_disk_fails_what_waits_and_heals_without_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    command = [sys.executable, "-c", FULL_DISK, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    assert [count(path, t) for t in ("request", "posting", "outbox")] == [int(ran.stdout)] * 3


def test_a_process_that_just_ends_neither_hangs_nor_loses(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    code = CHILD.replace("await ledger.aclose()", "pass")
    command = [sys.executable, "-c", code, str(path), "a", "16"]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert count(path, "request") == 16


def test_a_forked_worker_has_a_writer_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    code = """
import asyncio, os, sys
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of

ledger = SqliteLedger(sys.argv[1])

async def settle(number):
    await ledger.settle(event_of(number))
    await ledger.aclose()

asyncio.run(settle(0))
for number in (1, 2):
    if os.fork() == 0:
        asyncio.run(settle(number))
        os._exit(0)
    assert os.wait()[1] == 0
"""
    command = [sys.executable, "-W", "ignore", "-c", code, str(path)]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=30)
    assert ran.returncode == 0, ran.stderr
    assert count(path, "request") == 3
