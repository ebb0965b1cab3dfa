"""Faults of reading answers and of closing calls."""

from tests.mutants.fault import Fault

SSE = "tests/wire/test_sse.py::"
CHAT = "tests/wire/test_openai_chat.py::"
BYTES = "tests/call/test_bytes.py::"
ORDER = "tests/call/test_any_order.py::"
COUNTED = "tests/call/test_usage_without_report.py::"
REFUSED = "tests/call/test_refusals.py::"
KEYS = "tests/call/test_idempotency.py::"

FAULTS = [
    Fault(
        "events: CR LF is taken for two line ends",
        "wire/sse.py",
        r'_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")',
        r'_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r)(?:\r\n|\n|\r)")',
        SSE + "test_events_are_read_by_the_standard_whole_and_byte_by_byte",
    ),
    Fault(
        "events: a bound that nobody keeps",
        "wire/sse.py",
        "if self._size > self._max:",
        "if self._size > self._max * 1000:",
        SSE + "test_an_event_over_the_bound_ends_the_reading_and_not_the_stream",
    ),
    Fault(
        "lines: the unfinished one is lost",
        "wire/ndjson.py",
        'line = b"".join([*self._pieces, line])',
        'line = b"".join([*self._pieces[1:], line])',
        "tests/wire/test_ndjson.py::test_any_cut_gives_the_same_lines_and_loses_no_byte",
    ),
    Fault(
        "reports: running ones add up",
        "wire/reports.py",
        "self._told[index] = (at, {**known[1], **counts} if known else counts)",
        "self._told[index] = (at, {n: c + (known[1].get(n, 0) if known else 0)"
        " for n, c in counts.items()})",
        CHAT + "test_a_later_report_replaces_an_earlier_one",
    ),
    Fault(
        "reports: cached tokens come on top",
        "wire/usage.py",
        "inputs = told.get(INPUT, 0)\n",
        "inputs = told.get(INPUT, 0) + told.get('cached_input', 0)\n",
        CHAT + "test_cached_written_and_reasoning_tokens_are_parts",
    ),
    Fault(
        "reader: an error in a stream is no failure",
        "wire/reader.py",
        'if value.get("error") or (kind and kind in form.fails):\n            self.failed = True',
        'if value.get("error") or (kind and kind in form.fails):\n            self.failed = False',
        COUNTED
        + "test_an_error_event_before_the_first_token_pays_nothing_and_after_it_what_was_sent",
    ),
    Fault(
        "texts: of several choices one is counted",
        "wire/texts.py",
        "return [text.getvalue() for text in self._groups.values()]",
        "return [text.getvalue() for text in self._groups.values()][:1]",
        CHAT + "test_a_recorded_stream_gives_its_usage_and_text",
    ),
    Fault(
        "alike: what stands between is not looked at",
        "wire/alike.py",
        "self.room or _QUOTE in text:",
        "self.room:",
        "tests/wire/test_alike.py::"
        "test_whoever_asks_at_any_moment_is_told_what_reading_each_piece_would_tell",
    ),
    Fault(
        "alike: texts that were kept come after later ones",
        "wire/texts.py",
        "        if self._kept or self._packed:\n            self.read_kept()\n        self._seen += pieces",
        "        self._seen += pieces",
        "tests/wire/test_alike.py::test_what_is_kept_comes_before_what_is_read_after_it",
    ),
    Fault(
        "alike: more text passes than is paid for",
        "call/answer.py",
        "alike.room, hold.room = min(alike.room, hold.room), 0",
        "hold.room = 0",
        "tests/call/test_prepaid.py::test_a_stream_that_cannot_be_paid_further_ends_cleanly",
    ),
    Fault(
        "bodies: a report in another place is not looked for",
        "wire/told.py",
        "for other in usage if other is not at}",
        "for other in usage if other is at and not at}",
        "tests/wire/test_told.py::test_a_report_in_another_place_is_looked_for",
    ),
    Fault(
        "forwarded: the leftmost address is believed",
        "wire/forwarded.py",
        "for name, value in reversed(told):",
        "for name, value in told:",
        "tests/wire/test_forwarded.py::"
        "test_whatever_a_client_writes_the_proxy_behind_it_tells_who_it_is",
    ),
    Fault(
        "refusals: the wait is rounded down",
        "wire/answers.py",
        '(b"retry-after", b"%d" % max(_ceil(retry_after_s), 1)),',
        '(b"retry-after", b"%d" % max(int(retry_after_s), 1)),',
        "tests/wire/test_answers.py::test_waiting_as_told_is_always_long_enough_and_never_over_a_minute",
    ),
    Fault(
        "closing: a call that was cancelled is not settled",
        "call/finish.py",
        "            elif not call.settled:\n                await settle(call)",
        "            elif not call.settled and not call.failure:\n                await settle(call)",
        ORDER + "test_a_cancelled_call_is_closed_once_with_what_was_produced",
    ),
    Fault(
        "closing: an answer that failed before its first token is billed",
        "call/settle.py",
        "if call.status is None or call.status >= NO_ANSWER or call.status == _NO_CONTENT:",
        "if call.status is None:",
        COUNTED + "test_a_request_that_failed_pays_nothing_and_is_recorded",
    ),
    Fault(
        "closing: who is sent to another place pays here, too",
        "call/bill.py",
        "NO_ANSWER = 300",
        "NO_ANSWER = 400",
        COUNTED + "test_who_is_sent_to_another_place_pays_there_only",
    ),
    Fault(
        "closing: what was billed of a stream in the background is billed again",
        "call/settle.py",
        "        usage = _beyond(usage, call.billed, is_rest=_is_rest(call, usage))\n",
        "        pass\n",
        "tests/call/test_deferred.py::"
        "test_of_a_background_stream_that_was_cut_the_rest_is_billed_when_it_is_fetched",
    ),
    Fault(
        "metering: parts of a kept stream are billed as if each began anew",
        "call/settle.py",
        "    if not is_rest:\n",
        "    if True:\n",
        "tests/call/test_deferred_streams.py::test_every_part_of_a_kept_stream_is_billed_once",
    ),
    Fault(
        "metering: an answer is read as its request says",
        "wire/facts.py",
        "                if holds(value, other):",
        "                if False:",
        "tests/call/test_forms_of_answers.py::test_a_stream_is_billed_in_the_form_it_comes_in",
    ),
    Fault(
        "metering: a running report is the last word",
        "wire/reader.py",
        "self.usage_final = ended and (of_whole or not self.awaits_report)",
        "self.usage_final = ended",
        "tests/call/test_repeated_reports.py::"
        "test_who_asked_for_a_report_of_the_whole_is_billed_by_it_and_by_no_running_one",
    ),
    Fault(
        "metering: of choices that report each for itself one is billed",
        "wire/reader.py",
        "            self._reports.were_of(before)",
        "            pass",
        "tests/call/test_several_choices.py::"
        "test_choices_that_tell_their_usage_each_for_itself_are_billed_together",
    ),
    Fault(
        "prepaid: a cap is believed",
        "call/hold.py",
        "                    self._most = _NO_END  # its server does not keep to the cap",
        "                    return True",
        "tests/call/test_prepaid.py::"
        "test_a_stream_that_keeps_to_no_cap_goes_on_for_as_long_as_it_is_paid",
    ),
    Fault(
        "closing: no usage means nothing",
        "call/settle.py",
        "    return await _counted(call, reader, reader.usage or Usage())",
        "    return reader.usage or Usage()",
        COUNTED + "test_a_json_answer_without_usage_is_counted_from_its_text",
    ),
    Fault(
        "closing: a place is given back twice",
        "call/settle.py",
        "    if not call.released:\n        call.released = True\n",
        "    if not call.released:\n",
        "tests/call/test_waiting.py::"
        "test_a_settlement_that_is_cancelled_and_run_again_gives_one_place_back",
    ),
    Fault(
        "closing: a ledger that does not answer is waited for",
        "ledgers/in_time.py",
        ">= self._looks_max\n",
        ">= 10**9\n",
        "tests/ledgers/test_in_time.py::"
        "test_a_bill_without_an_answer_is_kept_in_time_and_handed_over_later[a future]",
    ),
    Fault(
        "closing: what could not be kept is told to be billed",
        "ledgers/in_time.py",
        "        except LedgerUnavailable:\n            return\n",
        "        except LedgerUnavailable:\n            pass\n",
        "tests/ledgers/test_in_time.py::"
        "test_of_a_bill_that_cannot_be_kept_the_ledger_tells_what_became[False]",
    ),
    Fault(
        "closing: a bill that is kept is taken for one that the ledger has",
        "ledgers/in_time.py",
        'late.durable.set_exception(BillKept("the ledger has not answered; the bill is kept"))',
        "late.durable.set_result(None)",
        "tests/ledgers/test_in_time.py::"
        "test_who_hears_of_the_ledger_itself_hears_nothing_of_a_bill_that_is_kept",
    ),
    Fault(
        "closing: an idle ledger is believed",
        "call/settle.py",
        "isinstance(failure, BillKept) or await _retry(billing, call.event, failure)",
        "True",
        REFUSED + "test_a_ledger_that_cannot_record_makes_a_503_and_nothing_is_debited_later",
    ),
    Fault(
        "admission: the output is not reserved",
        "call/admission.py",
        "tokens = inputs + reserved_output(call, left)",
        "tokens = inputs",
        "tests/call/test_metering_options.py::test_the_assumed_output_is_reserved",
    ),
    Fault(
        "hold: a stream that ran dry goes on",
        "call/hold.py",
        "            if not extended:\n                return False",
        "            if not extended:\n                return True",
        "tests/call/test_prepaid.py::test_a_stream_that_cannot_be_paid_further_ends_cleanly",
    ),
    Fault(
        "claims: a refusal keeps the key",
        "call/worker.py",
        "        note_refusal(call, ended)\n    await abandon(call)\n",
        "        note_refusal(call, ended)\n",
        KEYS + "test_a_refusal_gives_the_key_back",
    ),
    Fault(
        "keys: failures are not counted",
        "call/failed_keys.py",
        "        failures.append(now)\n",
        "",
        "tests/call/test_keys_under_attack.py::"
        "test_too_many_failed_keys_are_refused_and_a_valid_one_never_is",
    ),
]
