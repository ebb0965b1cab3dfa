"""Faults of the relay and of sinks."""

from tests.mutants.fault import Fault

RELAY = "tests/sinks/test_relay.py::"
VERDICTS = "tests/sinks/test_verdicts.py::"
WINDOW = "tests/sinks/test_dedupe_window.py::"
HTTP = "tests/sinks/test_http.py::"
JSONL = "tests/sinks/test_jsonl.py::"

FAULTS = [
    Fault(
        "relay: the cursor moves before a sink has answered",
        "sinks/delivery.py",
        "        verdict = await offer(self._name, self._sink, events, self._pace.offer_timeout_s)\n"
        "        if verdict.done:",
        "        await self._advance(rows[-1][0], {})\n"
        "        verdict = await offer(self._name, self._sink, events, self._pace.offer_timeout_s)\n"
        "        if verdict.done:",
        RELAY + "test_what_a_sink_did_not_take_is_offered_again_and_others_do_not_wait",
    ),
    Fault(
        "relay: who lost the election goes on",
        "sinks/delivery.py",
        "                if not await self._outbox.elect(self._name):\n                    return\n",
        "",
        "tests/sinks/test_takeover.py::"
        "test_who_is_the_relay_no_more_stops_and_comes_back_when_it_is_its_turn",
    ),
    Fault(
        "relay: a refused event is forgotten",
        "sinks/delivery.py",
        "        await self._outbox.advance(self._name, place, rejected)",
        "        await self._outbox.advance(self._name, place, {})",
        RELAY + "test_refused_events_are_dead_letters_and_the_others_count_as_taken",
    ),
    Fault(
        "relay: what is in doubt for too long is sent again",
        "sinks/delivery.py",
        "if (now - attempt.began).total_seconds() <= window_s:",
        "if (now - attempt.began).total_seconds() <= window_s * 1e9:",
        WINDOW + "test_beyond_the_window_it_is_set_aside_and_what_was_never_sent_goes_on",
    ),
    Fault(
        "relay: a far end that asks for patience gets none",
        "sinks/delivery.py",
        "        return max(delay_s, asked_s)",
        "        return delay_s",
        VERDICTS + "test_a_far_end_that_asks_for_patience_gets_it_within_bounds",
    ),
    Fault(
        "offer: a sink that raises has taken all",
        "sinks/offer.py",
        "    return Verdict(0, {}, failure)",
        "    return Verdict(len(events), {})",
        VERDICTS + "test_whatever_a_sink_raises_it_is_offered_again",
    ),
    Fault(
        "offer: what lies behind an open event does not wait for it",
        "sinks/offer.py",
        "done = next((n for n, event in enumerate(events) if event.id not in dealt_with), None)",
        "done = len(dealt_with) if len(dealt_with) < len(events) else None",
        VERDICTS + "test_what_lies_behind_an_open_event_waits_for_it",
    ),
    Fault(
        "http: a client error of one event is that of the whole batch",
        "sinks/http.py",
        "            elif len(part) == 1:\n",
        "            elif len(part):\n",
        HTTP + "test_one_of_a_hundred_at_fault_is_isolated_and_the_others_arrive_in_order",
    ),
    Fault(
        "jsonl: half a line stays",
        "sinks/jsonl.py",
        "        os.ftruncate(file, size)  # readers shall not find half a line, nor a batch twice\n",
        "",
        JSONL + "test_a_full_disk_leaves_no_half_line_and_the_batch_follows_whole",
    ),
    Fault(
        "outbox: the cursor may go back",
        "ledgers/outbox.py",
        " DO UPDATE SET seq = excluded.seq WHERE excluded.seq > sink_cursor.seq",
        " DO UPDATE SET seq = excluded.seq",
        RELAY + "test_a_restart_resumes_at_the_cursor_and_a_new_sink_begins_with_the_oldest",
    ),
    Fault(
        "relay: its end keeps others from delivering",
        "ledgers/sqlite.py",
        "        if lock is not None:\n            lock.release()\n",
        "",
        "tests/sinks/test_takeover.py::"
        "test_a_relay_that_is_closed_lets_others_deliver_while_its_ledger_goes_on",
    ),
    Fault(
        "relay: who has one sink has them all",
        "ledgers/postgres_relay.py",
        "    return int.from_bytes(digest[:4], signed=True)",
        "    return len(digest)",
        "tests/ledgers/test_postgres_relay.py::"
        "test_sinks_have_locks_of_their_own_on_one_connection_that_ends_with_the_last",
    ),
    Fault(
        "postgres: who stands still keeps all others waiting",
        "ledgers/postgres_connecting.py",
        '    "idle_in_transaction_session_timeout": f"{COMMAND_TIMEOUT_S * 1000:.0f}ms",\n',
        "",
        "tests/faults/test_postgres_frozen.py::"
        "test_a_host_that_stands_still_in_a_transaction_keeps_no_other_from_billing",
    ),
    Fault(
        "relay: its lock in PostgreSQL outlives its event loop",
        "ledgers/postgres_relay.py",
        "None)\n                self._connection.terminate()\n            raise",
        "None)\n            raise",
        "tests/ledgers/test_postgres_relay.py::"
        "test_a_loop_that_ends_without_a_shutdown_lets_another_process_deliver",
    ),
]
