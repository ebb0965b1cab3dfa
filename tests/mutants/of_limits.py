"""Faults of the limits: scripts, counters, windows, what holds in an outage, leases, waiting."""

from tests.mutants.fault import Fault

CONTRACT = "tests/stores/test_store_contract.py::"
STEPS = "tests/stores/test_clock_steps.py::"
WINDOW = "tests/stores/test_window.py::"
CONNECTIONS = "tests/stores/test_connections.py::"
OUTAGE = "tests/stores/test_outage.py::"
REDIS = "tests/stores/test_redis_store.py::"
DAMAGED = "tests/faults/test_damaged_keys.py::"
MOVES = "tests/faults/test_redis_moves.py::"
LEASES = "tests/call/test_leases.py::"
WAITING = "tests/call/test_waiting.py::"

FAULTS = [
    Fault(
        "script: one request more than the limit fits",
        "stores/lua/admit.lua",
        "if window.total + asked > limit then fits = false end",
        "if window.total + asked > limit + 1 then fits = false end",
        CONTRACT + "test_an_admitted_request_counts_whatever_becomes_of_it[redis]",
    ),
    Fault(
        "script: a refused request counts all the same",
        "stores/lua/admit.lua",
        "if takes and rate.asked > 0 then add(",
        "if rate.asked > 0 then add(",
        CONTRACT + "test_asked_again_for_what_it_has_a_call_takes_nothing[redis]",
    ),
    Fault(
        "script: concurrency is not looked at",
        "stores/lua/admit.lua",
        "  if group.is_full then fits = false end\n",
        "",
        CONTRACT + "test_only_concurrency_full_is_one_second_called_an_estimate[redis]",
    ),
    Fault(
        "script: a retry takes again",
        "stores/lua/admit.lua",
        "  if find_lease(state, call) then has = true end\n",
        "",
        CONTRACT + "test_asked_again_for_what_it_has_a_call_takes_nothing[redis]",
    ),
    Fault(
        "script: a settlement frees no slot",
        "stores/lua/settle.lua",
        "state.running = state.running - 1",
        "state.running = state.running",
        CONTRACT + "test_an_aborted_call_keeps_its_reservation[redis]",
    ),
    Fault(
        "script: a lost lease frees its slot twice",
        "stores/lua/settle.lua",
        "      if is_lost == 1 then\n        held = 0\n      else\n",
        "      if is_lost == 2 then\n        held = 0\n      else\n",
        CONTRACT + "test_a_lost_lease_is_not_taken_back_and_gives_nothing_back_twice[redis]",
    ),
    Fault(
        "script: a lost lease is taken back",
        "stores/lua/renew.lua",
        "if lost == 0 then",
        "if lost < 2 then",
        CONTRACT + "test_a_lost_lease_is_not_taken_back_and_gives_nothing_back_twice[redis]",
    ),
    Fault(
        "script: more is given back than was taken",
        "stores/lua/state.lua",
        "local back = min(-tokens, taken)",
        "local back = -tokens",
        CONTRACT + "test_an_overrun_that_was_told_in_error_is_not_taken_from_others[redis]",
    ),
    Fault(
        "script: unused tokens go to every limit of the account",
        "stores/lua/state.lua",
        "if window.metric == TOKENS and (not left or left % 2 == 1) then",
        "if window.metric == TOKENS then",
        CONTRACT
        + "test_what_a_model_with_tokens_of_its_own_does_not_use_is_given_back_to_it_alone[redis]",
    ),
    Fault(
        "script: a lost lease forgets which limits it took from",
        "stores/lua/state.lua",
        "used = reserved + note",
        "used = reserved",
        CONTRACT + "test_a_lost_lease_is_corrected_where_it_took_from_and_nowhere_else[redis]",
    ),
    Fault(
        "script: what a model has of its own takes the account's slots, too",
        "stores/lua/state.lua",
        "if are_all then return taken end",
        "if true then return taken end",
        CONTRACT
        + "test_slots_of_a_model_with_a_concurrency_of_its_own_are_none_of_the_accounts_own[redis]",
    ),
    Fault(
        "script: an overrun is forgotten",
        "stores/lua/state.lua",
        "add(window, state.now, tokens)\n      elseif",
        "add(window, state.now, 0)\n      elseif",
        CONTRACT + "test_unused_reservation_returns_and_an_overrun_is_recorded[redis]",
    ),
    Fault(
        "script: the clock may go back",
        "stores/lua/state.lua",
        "state.now = max(state.now, latest)",
        "state.now = state.now",
        CONTRACT + "test_a_clock_that_goes_back_lets_nothing_leave_early_or_stay_longer[redis]",
    ),
    Fault(
        "script: time stands still until a clock that was set back has come as far again",
        "stores/lua/state.lua",
        "if state.now - now >= STEP_US then",
        "if false then",
        STEPS + "test_requests_that_run_keep_their_slots_and_those_of_the_dead_come_back",
    ),
    Fault(
        "script: time goes on from when an account is let in after a clock was set back",
        "stores/lua/admit.lua",
        "if takes or state.went_back then save",
        "if takes then save",
        STEPS
        + "test_what_was_admitted_before_it_leaves_as_told_and_at_most_a_minute_later[28800.0]",
    ),
    Fault(
        "script: a slot leaves by its first addition",
        "stores/lua/state.lua",
        "put_slot(window, window.n - 1, now, had + amount)",
        "put_slot(window, window.n - 1, latest, had + amount)",
        CONTRACT + "test_no_minute_whatever_holds_more_than_the_limits[redis]",
    ),
    Fault(
        "script: keys live for ever",
        "stores/lua/state.lua",
        ", 'PX', floor(lives / 1000) + 1000)",
        ")",
        REDIS + "test_keys_are_in_one_hash_slot_expire_and_name_nobody",
    ),
    Fault(
        "script: what is not ours is read as far as it goes",
        "stores/lua/state.lua",
        "return at == #text + 1",
        "return true",
        DAMAGED + "test_it_is_replaced_and_said_once_and_the_limits_hold_again[zeros]",
    ),
    Fault(
        "script: a renewal replaces what is not ours, and tells nobody",
        "stores/lua/renew.lua",
        "if not state.damaged then save(key, state, lease) end",
        "save(key, state, lease)",
        DAMAGED
        + "test_while_a_call_runs_it_costs_that_call_its_slot_and_no_other_account_anything",
    ),
    Fault(
        "window: a slot leaves a microsecond early",
        "stores/window.py",
        "    return window_us, max(",
        "    return window_us - 1, max(",
        CONTRACT + "test_no_minute_whatever_holds_more_than_the_limits[memory]",
    ),
    Fault(
        "window: nobody is told when the first of its slots leaves",
        "stores/window.py",
        "        self.due_us = min(self.due_us, now_us + self.window_us)\n",
        "",
        WINDOW + "test_before_it_is_due_nothing_leaves",
    ),
    Fault(
        "counters: nobody is told when a rate shorter than a lease lets go",
        "stores/counters.py",
        "self.stays_us = min([lease_us, *[rate.window_us for rate, _ in rated]])",
        "self.stays_us = lease_us",
        CONTRACT
        + "test_what_has_left_a_rate_that_is_shorter_than_a_lease_is_not_told_as_used[memory]",
    ),
    Fault(
        "counters: nobody is told when a lease ends",
        "stores/counters.py",
        "                counters.earliest_us = until_us\n",
        "                pass\n",
        CONTRACT + "test_a_lease_that_is_not_renewed_gives_back_what_was_not_used[memory]",
    ),
    Fault(
        "window: moments lose their beginning",
        "stores/window.py",
        "self._base_us += later_us",
        "self._base_us += 0",
        WINDOW + "test_sum_and_wait_are_those_of_a_reference_that_keeps_every_addition",
    ),
    Fault(
        "window: a late refund mints",
        "stores/window.py",
        "if place < len(latest) and latest[place] // self._slot_us == index:",
        "if place < len(latest):",
        WINDOW + "test_a_refund_after_its_slot_has_left_mints_nothing",
    ),
    Fault(
        "window: the wait is that of the first slot",
        "stores/window.py",
        "            over -= amount\n            if over <= 0:",
        "            over -= amount\n            if over <= over:",
        WINDOW + "test_sum_and_wait_are_those_of_a_reference_that_keeps_every_addition",
    ),
    Fault(
        "counters: unused tokens go to every limit of the account",
        "stores/counters.py",
        "self.from_windows = self._of_tokens if has_all else tuple(taking)",
        "self.from_windows = self._of_tokens",
        CONTRACT
        + "test_what_a_model_with_tokens_of_its_own_does_not_use_is_given_back_to_it_alone[memory]",
    ),
    Fault(
        "counters: a lease that ran out keeps its slot",
        "stores/counters.py",
        "            lease.is_lost = True\n            if lease.has_slot:\n                self.running -= 1",
        "            lease.is_lost = True",
        CONTRACT + "test_a_lease_that_is_not_renewed_gives_back_what_was_not_used[memory]",
    ),
    Fault(
        "counters: what a model has of its own takes the account's slots, too",
        "stores/counters.py",
        "            if takes_slot:\n                counters.running += 1",
        "            counters.running += 1",
        CONTRACT
        + "test_slots_of_a_model_with_a_concurrency_of_its_own_are_none_of_the_accounts_own[memory]",
    ),
    Fault(
        "counters: a model's own limits refuse nobody",
        "stores/counters.py",
        "        if not fits:\n",
        "        if not fits and len(asked.counted) < 2:\n",
        CONTRACT + "test_a_refusal_by_one_group_takes_nothing_from_the_other[memory]",
    ),
    Fault(
        "outage: what was settled meanwhile is not made up",
        "stores/outage.py",
        "        await self._shared.settle(*owed)\n",
        "",
        OUTAGE + "test_what_was_settled_meanwhile_is_made_up",
    ),
    Fault(
        "outage: each process takes the whole limit",
        "stores/share.py",
        "return max(1, -(-limit // max(workers, 1)))",
        "return limit",
        OUTAGE + "test_local_takes_this_process_share_of_each_limit_rounded_up",
    ),
    Fault(
        "outage: what exceeds a process' share is refused for as long as it lasts",
        "stores/share.py",
        "tokens=min(ask.tokens, Limits(groups).tokens_max))",
        "tokens=ask.tokens)",
        OUTAGE + "test_local_admits_what_exceeds_its_share_of_tokens_by_the_whole_share",
    ),
    Fault(
        "outage: an admission whose answer was lost keeps its slot",
        "stores/outage.py",
        "            self._owe(Admission(ask, _UNKNOWN), 0)\n",
        "            pass\n",
        OUTAGE + "test_an_admission_whose_answer_was_lost_keeps_no_slot",
    ),
    Fault(
        "outage: a call that its process refuses keeps what the store took for it",
        "stores/outage.py",
        "        else:\n            self._owe_back(ask)\n",
        "",
        OUTAGE + "test_a_call_whose_answer_was_lost_and_that_its_process_refuses_keeps_no_slot",
    ),
    Fault(
        "outage: a call that is admitted after all loses its slot to an older debt",
        "stores/outage.py",
        "            self._owed.pop(ask.call_id, None)\n",
        "            pass\n",
        OUTAGE + "test_a_call_that_was_refused_and_is_admitted_when_it_asks_again_keeps_its_slot",
    ),
    Fault(
        "connections: the next gets the reply of a command that was given up",
        "stores/connections.py",
        "connection.read_response()",
        "connection.read_response(disconnect_on_error=False)",
        CONNECTIONS + "test_whenever_a_command_is_given_up_the_next_gets_its_own_reply",
    ),
    Fault(
        "connections: one to a server that is no primary any more stays",
        "stores/connections.py",
        "                await self._leave(connection)\n",
        "                pass\n",
        MOVES
        + "test_a_name_that_moves_to_another_server_is_followed_though_old_connections_stay[yes]",
    ),
    Fault(
        "connections: each command opens its own",
        "stores/connections.py",
        "self._free.pop() if self._free else self._pool.make_connection()",
        "self._pool.make_connection()",
        CONNECTIONS + "test_there_are_as_many_as_commands_were_under_way_at_once[tcp]",
    ),
    Fault(
        "leases: renewals do not tell what was used",
        "call/leases.py",
        "Held(holder.admission, holder.tokens_so_far)",
        "Held(holder.admission, 0)",
        LEASES + "test_what_runs_is_renewed_together_with_what_it_has_used",
    ),
    Fault(
        "waiting: who comes later may pass",
        "call/waiting.py",
        "return account_id not in self._lines and self.places.try_take()",
        "return self.places.try_take()",
        WAITING + "test_a_small_request_does_not_pass_a_large_one_that_came_before",
    ),
    Fault(
        "waiting: who waits on another event loop is not woken",
        "call/waking.py",
        "loop.call_soon_threadsafe(step, turn)",
        "loop.call_soon(step, turn)",
        "tests/call/test_waiting_on_event_loops.py::"
        "test_all_who_wait_are_served_one_after_another_whichever_event_loop_they_wait_on"
        "[of one account]",
    ),
    Fault(
        "waiting: a refusal keeps its place",
        "call/admission.py",
        "        if not isinstance(answer, Admission):\n            waiting.places.give()\n",
        "        pass\n",
        WAITING + "test_a_refusal_leaves_no_place_taken",
    ),
    Fault(
        "waiting: a refusal in the line keeps its place",
        "call/waiting.py",
        "        if isinstance(answer, Refusal):\n            self.places.give()\n        return answer",
        "        return answer",
        WAITING + "test_a_refusal_in_the_line_leaves_no_place_taken",
    ),
]
