"""The tests of money are themselves tested: each of these faults is caught by the test named."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent.parent
HOLDS, POWER, BOOK, BATCHES, BY_ACCOUNT = (
    f"tests/ledgers/test_{name}.py::"
    for name in ("holds", "power", "book", "batches", "records_by_account")
)


class Mutant(NamedTuple):
    """`before` becomes `after` in a file of `ledgers/`; `caught_by` must fail then."""

    name: str
    file: str
    before: str
    after: str
    caught_by: str


MUTANTS = [
    Mutant(
        "no guard of the balance",
        "holds.py",
        " AND balance_nano - held_nano >= ? RETURNING 1",
        " AND ? IS NOT NULL RETURNING 1",
        HOLDS + "test_of_a_hundred_racing_calls_on_a_balance_for_ten_exactly_ten_are_held[sqlite]",
    ),
    Mutant(
        "the guard forgets what is held",
        "holds.py",
        " AND balance_nano - held_nano >= ?",
        " AND balance_nano >= ?",
        HOLDS + "test_of_a_hundred_racing_calls_on_a_balance_for_ten_exactly_ten_are_held[sqlite]",
    ),
    Mutant(
        "a settlement leaves its hold",
        "settling.py",
        "UPDATE balance SET held_nano = held_nano - ? WHERE",
        "UPDATE balance SET held_nano = held_nano - 0 * ? WHERE",
        HOLDS + "test_a_settlement_ends_the_hold_and_takes_what_was_used[sqlite]",
    ),
    Mutant(
        "what exceeds the balance is not shown",
        "settling.py",
        "if overdrawn <= 0:",
        "if overdrawn >= 0:",
        HOLDS + "test_what_exceeds_the_balance_is_taken_and_shown_by_the_call_that_did_it[sqlite]",
    ),
    Mutant(
        "a checkpoint does not move",
        "holds.py",
        "SET amount_nano = amount_nano + ?, checkpoint = ? WHERE",
        "SET amount_nano = amount_nano + ?, checkpoint = coalesce(checkpoint, ?) WHERE",
        HOLDS + "test_what_a_dead_process_held_ends_once_at_its_checkpoint[sqlite]",
    ),
    Mutant(
        "dead processes are never noticed",
        "holds.py",
        "beat_ms < ?",
        "beat_ms < ? - 9223372036854775807",
        HOLDS + "test_what_a_dead_process_held_ends_once_at_its_checkpoint[sqlite]",
    ),
    Mutant(
        "living processes are taken for dead",
        "holds.py",
        "now_ms - round(LEASE_S * 1000)",
        "now_ms",
        HOLDS + "test_a_process_that_beats_keeps_what_it_holds[sqlite]",
    ),
    Mutant(
        "a settlement posts what is recorded already",
        "recording.py",
        "FROM request WHERE seq > ? AND kind",
        "FROM request WHERE seq > ? - 1 AND kind",
        BATCHES + "test_of_bills_of_one_call_the_first_counts_in_one_batch_as_in_several[sqlite]",
    ),
    Mutant(
        "a record is left out as those of accounts are sorted",
        "recording.py",
        "WHERE seq > (SELECT sorted_seq FROM meta)",
        "WHERE seq > (SELECT sorted_seq + 1 FROM meta)",
        BY_ACCOUNT + "test_each_record_is_found_by_its_account_sorted_or_not",
    ),
    Mutant(
        "a reference is not looked at",
        "books.py",
        "    if m.reference is None:\n        return None\n",
        "    if m.reference is not None:\n        return None\n",
        BOOK + "test_a_reference_is_booked_once_and_never_for_something_else[sqlite]",
    ),
    Mutant(
        "a reference may stand for anything",
        "books.py",
        "if rows[0][1] != _fingerprint(m):",
        "if rows[0][1] == '':",
        BOOK + "test_a_reference_is_booked_once_and_never_for_something_else[sqlite]",
    ),
    Mutant(
        "a bill is credited without end",
        "books.py",
        "if not 0 < m.amount_nano <= left:",
        "if not 0 < m.amount_nano:",
        BOOK + "test_a_bill_is_credited_up_to_what_it_was_and_a_recharge_reversed_once[sqlite]",
    ),
    Mutant(
        "more is withdrawn than there is",
        "books.py",
        "if m.amount_nano > available:",
        "if m.amount_nano > available + m.amount_nano:",
        BOOK + "test_more_than_is_there_is_not_withdrawn[sqlite]",
    ),
    Mutant(
        "a grant that expired stays",
        "lots.py",
        "amount = min(left, remaining)",
        "amount = 0",
        BOOK + "test_a_grant_is_spent_first_and_what_is_left_ends_at_its_time[sqlite]",
    ),
    Mutant(
        "what is committed is not synced",
        "connection.py",
        'db.pragma("synchronous", "full")\n    if (mode, db.pragma("synchronous")) != ("wal", 2):',
        'db.pragma("synchronous", "normal")\n    if mode != "wal":',
        POWER + "test_any_order_of_operations_crashes_and_power_cuts_adds_up",
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_each_fault_is_caught(mutant: Mutant, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src")
    file = tmp_path / "src" / "inf_middleware" / "ledgers" / mutant.file
    text = file.read_text("utf-8")
    assert text.count(mutant.before) == 1, "the mutant does not fit the code any more"
    file.write_text(text.replace(mutant.before, mutant.after), "utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        [*command, mutant.caught_by],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert ran.returncode == 1, f"it survived:\n{ran.stdout[-2000:]}"
    assert "1 failed" in ran.stdout
