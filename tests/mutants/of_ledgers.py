"""Faults of the ledger: money, holds, what is durable."""

from tests.mutants.fault import Fault

HOLDS, HEARTBEAT, POWER, BOOK, BATCHES, BY_ACCOUNT, CLAIMS, LATE = (
    f"tests/ledgers/test_{name}.py::"
    for name in (
        "holds",
        "heartbeat",
        "power",
        "book",
        "batches",
        "records_by_account",
        "claims",
        "late_settlements",
    )
)

FAULTS = [
    Fault(
        "no guard of the balance",
        "ledgers/holds.py",
        " AND balance_nano - held_nano >= ? RETURNING 1",
        " AND ? IS NOT NULL RETURNING 1",
        HOLDS + "test_of_a_hundred_racing_calls_on_a_balance_for_ten_exactly_ten_are_held[sqlite]",
    ),
    Fault(
        "the guard forgets what is held",
        "ledgers/holds.py",
        " AND balance_nano - held_nano >= ?",
        " AND balance_nano >= ?",
        HOLDS + "test_of_a_hundred_racing_calls_on_a_balance_for_ten_exactly_ten_are_held[sqlite]",
    ),
    Fault(
        "a settlement leaves its hold",
        "ledgers/settling.py",
        "UPDATE balance SET held_nano = held_nano - ? WHERE",
        "UPDATE balance SET held_nano = held_nano - 0 * ? WHERE",
        HOLDS + "test_a_settlement_ends_the_hold_and_takes_what_was_used[sqlite]",
    ),
    Fault(
        "what exceeds the balance is not shown",
        "ledgers/settling.py",
        "if overdrawn <= 0:",
        "if overdrawn >= 0:",
        HOLDS + "test_what_exceeds_the_balance_is_taken_and_shown_by_the_call_that_did_it[sqlite]",
    ),
    Fault(
        "a checkpoint does not move",
        "ledgers/holds.py",
        "SET amount_nano = amount_nano + ?, checkpoint = ? WHERE",
        "SET amount_nano = amount_nano + ?, checkpoint = coalesce(checkpoint, ?) WHERE",
        HOLDS + "test_what_a_dead_process_held_ends_once_at_its_checkpoint[sqlite]",
    ),
    Fault(
        "dead processes are never noticed",
        "ledgers/holds.py",
        "beat_ms < ?",
        "beat_ms < ? - 9223372036854775807",
        HOLDS + "test_what_a_dead_process_held_ends_once_at_its_checkpoint[sqlite]",
    ),
    Fault(
        "what is settled together takes more than is there, and nobody is told",
        "ledgers/settling.py",
        "available - charged.get(taken_of, 0)",
        "available",
        HOLDS + "test_settled_together_each_call_is_overdrawn_as_if_it_was_settled_alone[sqlite]",
    ),
    Fault(
        "each hold writes that its process lives",
        "ledgers/holds.py",
        "yield _beat(owner, now_ms, _FRESH_MS)\n    floor_nano",
        "yield _beat(owner, now_ms)\n    floor_nano",
        HOLDS + "test_a_hold_says_that_its_process_lives_once_in_a_beat[sqlite]",
    ),
    Fault(
        "a hold does not say any more that its process lives",
        "ledgers/holds.py",
        "_FRESH_MS = round(BEAT_S * 1000)",
        "_FRESH_MS = 2 * round(BEAT_S * 1000)",
        HOLDS + "test_a_hold_says_that_its_process_lives_once_in_a_beat[sqlite]",
    ),
    Fault(
        "living processes are taken for dead",
        "ledgers/holds.py",
        "now_ms - round(LEASE_S * 1000)",
        "now_ms",
        HOLDS + "test_a_process_that_beats_keeps_what_it_holds[sqlite]",
    ),
    Fault(
        "who was silent because nobody could write is taken for dead",
        "ledgers/heart.py",
        "judges = lasting >= lease_ms",
        "judges = True",
        HEARTBEAT
        + "test_what_others_held_ends_once_there_were_beats_for_a_lease_without_a_gap[sqlite]",
    ),
    Fault(
        "what a process that restarts again and again has seen is forgotten",
        "ledgers/pulse.py",
        "DO UPDATE SET fingerprint = excluded.fingerprint",
        "DO NOTHING",
        HEARTBEAT
        + "test_a_process_that_is_started_again_and_again_goes_on_with_the_beats_before_it[sqlite]",
    ),
    Fault(
        "the expiry of a grant takes what is held where there is other money",
        "ledgers/lots.py",
        "CASE WHEN due_nano < balance_nano THEN due_nano ELSE balance_nano END",
        "balance_nano",
        HOLDS + "test_a_call_pays_with_the_grant_it_holds_of_whatever_else_its_account_has"
        "[sqlite-1-None-1]",
    ),
    Fault(
        "a late bill is charged whole beside its checkpoint",
        "ledgers/continuing.py",
        "line.quantity - before.pop((line.meter, line.unit_price_nano), 0)",
        "line.quantity - 0 * before.pop((line.meter, line.unit_price_nano), 0)",
        LATE + "test_what_a_call_used_beyond_its_checkpoint_is_a_record_of_its_own[sqlite-700]",
    ),
    Fault(
        "in PostgreSQL a late bill of what is held here goes the short way",
        "ledgers/postgres.py",
        "rows.again = held or event.was_read_back",
        "rows.again = event.was_read_back",
        LATE + "test_what_a_call_used_beyond_its_checkpoint_is_a_record_of_its_own[postgres-0]",
    ),
    Fault(
        "a bill whose caller was told that there is none stays",
        "ledgers/taking_back.py",
        "if left_nano > 0:",
        "if left_nano < 0:",
        CLAIMS + "test_a_bill_whose_caller_was_told_that_there_is_none_is_taken_back_once[sqlite]",
    ),
    Fault(
        "a settlement posts what is recorded already",
        "ledgers/recording.py",
        "FROM request WHERE seq > ? AND kind",
        "FROM request WHERE seq > ? - 1 AND kind",
        BATCHES + "test_of_bills_of_one_call_the_first_counts_in_one_batch_as_in_several[sqlite]",
    ),
    Fault(
        "a settlement told again takes a place once more",
        "ledgers/recording.py",
        "for seq, row in zip(seqs, rows, strict=True) if seq in fresh]",
        "for seq, row in zip(seqs, rows, strict=True)]",
        BATCHES + "test_of_bills_of_one_call_the_first_counts_in_one_batch_as_in_several[sqlite]",
    ),
    Fault(
        "a record is left out as those of accounts are sorted",
        "ledgers/recording.py",
        "SELECT account, settled_at, seq FROM request WHERE seq > (SELECT sorted_seq FROM meta)",
        "SELECT account, settled_at, seq FROM request WHERE seq > (SELECT sorted_seq + 1 FROM meta)",
        BY_ACCOUNT + "test_each_record_is_found_by_its_account_sorted_or_not",
    ),
    Fault(
        "a record is left out as those of some time are sorted",
        "ledgers/recording.py",
        "SELECT settled_at, seq FROM request WHERE seq > (SELECT sorted_seq FROM meta)",
        "SELECT settled_at, seq FROM request WHERE seq > (SELECT sorted_seq + 1 FROM meta)",
        BY_ACCOUNT + "test_each_record_is_found_by_its_account_sorted_or_not",
    ),
    Fault(
        "a reference is not looked at",
        "ledgers/books.py",
        "    if m.reference is None:\n        return None\n",
        "    if m.reference is not None:\n        return None\n",
        BOOK + "test_a_reference_is_booked_once_and_never_for_something_else[sqlite]",
    ),
    Fault(
        "a reference may stand for anything",
        "ledgers/books.py",
        "if rows[0][1] != _fingerprint(m):",
        "if rows[0][1] == '':",
        BOOK + "test_a_reference_is_booked_once_and_never_for_something_else[sqlite]",
    ),
    Fault(
        "a bill is credited without end",
        "ledgers/books.py",
        "if not 0 < m.amount_nano <= left:",
        "if not 0 < m.amount_nano:",
        BOOK + "test_a_bill_is_credited_up_to_what_it_was_and_a_recharge_reversed_once[sqlite]",
    ),
    Fault(
        "more is withdrawn than there is",
        "ledgers/books.py",
        "if m.amount_nano > available:",
        "if m.amount_nano > available + m.amount_nano:",
        BOOK + "test_more_than_is_there_is_not_withdrawn[sqlite]",
    ),
    Fault(
        "a grant that expired stays",
        "ledgers/lots.py",
        "amount = min(left, remaining)",
        "amount = 0",
        BOOK + "test_a_grant_is_spent_first_and_what_is_left_ends_at_its_time[sqlite]",
    ),
    Fault(
        "what is committed is not synced",
        "ledgers/connection.py",
        'db.pragma("synchronous", "full")\n    if (mode, db.pragma("synchronous")) != ("wal", 2):',
        'db.pragma("synchronous", "normal")\n    if mode != "wal":',
        POWER + "test_of_three_hundred_power_cuts_none_loses_what_was_acknowledged[12]",
    ),
]
