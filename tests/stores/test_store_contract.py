"""Promises 1 to 3 and 8 in every store, on a clock that the test moves."""

import asyncio
import random
from typing import Any

import pytest

from inf_middleware import Tier
from inf_middleware.domain.limits import Admission, Refusal
from tests.stores.backends import LARGE, LEASE_S, SMALL, Driver


def test_the_wait_of_a_refusal_is_exact_over_all_limits_at_once(driver: Driver) -> None:
    for later in (0.0, 1.5, 0.25, 3.0, 0.1):
        driver.now += later
        driver.settle(driver.admitted(tokens=190), 190)
    driver.now += 2.0
    refusal = driver.refused(tokens=300)
    # The requests fit when the first leaves, at 60 s; the tokens only when the second does too.
    assert refusal.code == "tokens_limit_exceeded"
    assert (refusal.limit, refusal.used, refusal.requested) == (1_000, 950, 300)
    assert refusal.retry_after_s == pytest.approx(61.75 - driver.now, abs=1e-6)
    driver.now += refusal.retry_after_s - 0.000_001
    assert isinstance(driver.admit(tokens=300), Refusal)
    driver.now += 0.000_001
    driver.admitted(tokens=300)


def test_a_refusal_takes_nothing_from_any_limit(driver: Driver) -> None:
    held = driver.admitted(tokens=900)
    before = driver.refused(tokens=200).standings
    for _ in range(50):
        assert driver.refused(tokens=200).standings == before
    driver.settle(held, 0)
    after = driver.admitted(tokens=1_000).standings
    assert (after.requests.remaining, after.tokens.remaining) == (3, 0)


def test_an_admitted_request_counts_whatever_becomes_of_it(driver: Driver) -> None:
    for _ in range(5):
        driver.settle(driver.admitted(), 0)
    assert driver.refused().code == "requests_limit_exceeded"


def test_unused_reservation_returns_and_an_overrun_is_recorded(driver: Driver) -> None:
    driver.settle(driver.admitted(tokens=800), 100)
    driver.settle(driver.admitted(tokens=100), 950)
    refusal = driver.refused(tokens=1)
    assert refusal.used == 1_050
    assert refusal.standings.tokens.remaining == 0
    # The overrun became known now, and stays for a whole window from now.
    driver.now += 59.999
    assert driver.refused(tokens=1_000).used == 1_050
    driver.now += 0.001
    driver.admitted(tokens=1_000)


def test_an_aborted_call_keeps_its_reservation(driver: Driver) -> None:
    driver.settle(driver.admitted(tokens=700), None)
    assert driver.in_progress() == 0
    assert driver.refused(tokens=400).used == 700


def test_a_late_refund_mints_nothing(driver: Driver) -> None:
    late = driver.admitted(tokens=1_000)
    driver.now += 61.0
    fresh = driver.admitted(tokens=600)
    driver.settle(late, 0)
    assert driver.refused(tokens=401).used == 600
    driver.settle(fresh, 600)


def test_settling_twice_does_nothing(driver: Driver) -> None:
    first, second = driver.admitted(tokens=100), driver.admitted(tokens=100)
    driver.settle(first, 50)
    driver.settle(first, 0)
    driver.settle(first, 10_000)
    assert driver.in_progress() == 1
    driver.settle(second, 100)
    assert driver.admitted(tokens=850).standings.tokens.remaining == 0


def test_only_concurrency_full_is_one_second_called_an_estimate(driver: Driver) -> None:
    held = [driver.admitted() for _ in range(3)]
    refusal = driver.refused()
    assert (refusal.code, refusal.retry_after_s) == ("concurrency_limit_exceeded", 1.0)
    assert (refusal.limit, refusal.used, refusal.requested) == (3, 3, 1)
    driver.settle(held[0], 10)
    driver.admitted()


def test_a_level_changed_between_two_requests_counts_from_the_next(driver: Driver) -> None:
    for _ in range(5):
        driver.settle(driver.admitted(SMALL), 10)
    assert isinstance(driver.admit(SMALL), Refusal)
    assert driver.admitted(LARGE).standings.requests.remaining == 2
    assert isinstance(driver.admit(SMALL), Refusal)


def test_further_rates_bind_in_the_same_step(driver: Driver) -> None:
    tier = Tier("Daily", 10, 100, 10_000, requests=["3/hour"], tokens=["500/day"])
    driver.settle(driver.admitted(tier, 400), 400)
    refusal = driver.refused(tier, 101)
    assert (refusal.code, refusal.window_s, refusal.limit) == (
        "tokens_limit_exceeded",
        86_400.0,
        500,
    )
    assert refusal.standings.tokens.limit == 500
    for _ in range(2):
        driver.settle(driver.admitted(tier, 50), 50)
    refusal = driver.refused(tier, 0)
    assert (refusal.code, refusal.window_s) == ("requests_limit_exceeded", 3_600.0)
    driver.now += 3_600.0
    assert driver.refused(tier, 1).window_s == 86_400.0
    driver.admitted(tier, 0)


def test_of_two_rates_over_one_time_the_tighter_holds_and_nothing_counts_twice(
    driver: Driver,
) -> None:
    tier = Tier("Twice", 10, 4, 1_000, requests=["3/minute"], tokens=["2000/minute", "500/minute"])
    held = driver.admitted(tier, 100)
    assert (held.standings.requests.limit, held.standings.requests.remaining) == (3, 2)
    assert (held.standings.tokens.limit, held.standings.tokens.remaining) == (500, 400)
    driver.settle(held, 40)
    assert driver.admitted(tier, 400).standings.tokens.remaining == 60
    assert driver.admitted(tier, 60).standings.requests.remaining == 0
    assert driver.refused(tier, 0).limit == 3


def test_a_rate_that_is_shorter_than_a_lease_lets_go_while_its_requests_still_run(
    driver: Driver,
) -> None:
    tier = Tier("Quick", 10, 100, 10_000, requests=["2/second"], tokens=["500/5second"])
    first = driver.admitted(tier, 200)
    driver.now += 0.25
    driver.admitted(tier, 200)
    assert driver.refused(tier, 10).retry_after_s == pytest.approx(0.75, abs=1e-6)
    driver.now += 0.75
    driver.admitted(tier, 10)
    driver.settle(first, 290)  # its overrun dates from now
    refusal = driver.refused(tier, 100)
    assert (refusal.used, refusal.window_s) == (500, 5.0)
    assert refusal.retry_after_s == pytest.approx(4.0, abs=1e-6)
    driver.now += 4.0
    assert driver.admitted(tier, 0).standings.tokens.remaining == 200
    driver.now += 1.0
    assert driver.admitted(tier, 0).standings.tokens.remaining == 500


def test_what_has_left_a_rate_that_is_shorter_than_a_lease_is_not_told_as_used(
    driver: Driver,
) -> None:
    tier = Tier("Quick", 10, 100, 10_000, requests=["10/second"])
    assert driver.admitted(tier).standings.requests.remaining == 9
    driver.now += 0.5
    assert driver.admitted(tier).standings.requests.remaining == 8
    driver.now += 0.5
    assert driver.admitted(tier).standings.requests.remaining == 8


def test_a_clock_that_goes_back_lets_nothing_leave_early_or_stay_longer(driver: Driver) -> None:
    driver.now = 100.0
    for _ in range(5):
        driver.settle(driver.admitted(), 1)
    driver.now = 50.0
    assert driver.refused().retry_after_s == 60.0
    driver.now = 160.0
    driver.admitted()


def test_more_tokens_than_the_level_holds_wait_the_whole_window(driver: Driver) -> None:
    assert driver.refused(tokens=1_001).retry_after_s == 60.0


def test_of_many_at_once_only_as_many_as_fit_are_admitted(driver: Driver) -> None:
    async def at_once() -> list[Any]:
        asks = [driver.ask(SMALL, 300) for _ in range(9)]
        return await asyncio.gather(*map(driver.store.admit, asks))

    admitted = [answer for answer in driver.run(at_once()) if isinstance(answer, Admission)]
    assert len(admitted) == 3


def test_asked_again_for_what_it_has_a_call_takes_nothing(driver: Driver) -> None:
    ask = driver.ask(SMALL, 400)
    first = driver.run(driver.store.admit(ask))
    for _ in range(10):
        again = driver.run(driver.store.admit(ask))
        assert isinstance(again, Admission)
        assert again.standings == first.standings
    driver.settle(first, 400)
    assert driver.in_progress() == 0
    assert driver.admitted(tokens=600).standings.requests.remaining == 3


def test_a_lease_that_is_not_renewed_gives_back_what_was_not_used(driver: Driver) -> None:
    driver.now = 5.0
    held = driver.admitted(tokens=900)
    driver.now = 20.0
    assert driver.renew((held, 250)) == frozenset()
    driver.now = 20.0 + LEASE_S - 0.000_001
    assert driver.refused(tokens=101).used == 900
    driver.now = 20.0 + LEASE_S
    # Its request counts, its slot is free, and so are the tokens it is not known to have used.
    after = driver.admitted(tokens=750).standings
    assert (after.tokens.remaining, after.concurrency.remaining) == (0, 2)
    assert driver.in_progress() == 1


def test_a_lost_lease_is_not_taken_back_and_gives_nothing_back_twice(driver: Driver) -> None:
    lost = driver.admitted(tokens=900)
    driver.now = LEASE_S
    others = [driver.admitted(tokens=300) for _ in range(3)]
    assert driver.renew((lost, 100), (others[0], 0)) == {lost.call_id}
    assert driver.in_progress() == 3
    # What it used after all is recorded where it becomes known.
    driver.settle(lost, 80)
    assert driver.in_progress() == 3
    assert driver.refused(tokens=21).used == 980
    driver.settle(lost, 80)
    driver.settle(lost, 0)
    assert driver.refused(tokens=21).used == 980
    for other in others:
        driver.settle(other, 0)
    assert driver.admitted(tokens=920).standings.tokens.remaining == 0


def test_a_lost_lease_that_is_settled_as_reserved_keeps_what_was_known(driver: Driver) -> None:
    held = driver.admitted(tokens=900)
    driver.renew((held, 50))
    driver.now = LEASE_S
    driver.admitted(tokens=1)
    driver.settle(held, None)
    assert driver.refused(tokens=1_000).used == 51


def test_a_request_longer_than_a_minute_keeps_its_slot_and_its_tokens_count(
    driver: Driver,
) -> None:
    held = driver.admitted(tokens=600)
    for used in (100, 250, 500, 700, 900, 1_000, 1_050, 1_100, 1_200):
        driver.now += 10.0
        assert driver.renew((held, used)) == frozenset()
        assert driver.in_progress() == 1
    # The reservation dates from admission and has left; what went beyond it has not.
    assert driver.refused(tokens=401).used == 600
    driver.settle(held, 1_250)
    assert driver.refused(tokens=351).used == 650
    assert driver.in_progress() == 0


def test_one_renewal_tells_of_many_calls_each_its_own(driver: Driver) -> None:
    wide = Tier("Wide", 10, 100, 10**11)
    first, second, third = (driver.admitted(wide, 100) for _ in range(3))
    assert driver.renew((first, 2**33 + 1), (second, 5), (third, 700)) == frozenset()
    standings = driver.admitted(wide, 0).standings
    assert standings.tokens.remaining == 10**11 - (2**33 + 1) - 100 - 700


def test_renewals_tell_sums_and_never_add(driver: Driver) -> None:
    held = driver.admitted(tokens=100)
    for used in (150, 150, 140, 200, 200):
        driver.renew((held, used))
    assert driver.refused(tokens=801).used == 200
    driver.settle(held, 200)
    assert driver.refused(tokens=801).used == 200


def test_a_rate_that_came_after_an_admission_is_given_nothing_back_for_it(driver: Driver) -> None:
    plain = Tier("Plain", 10, 100, 10_000)
    daily = Tier("Daily", 10, 100, 10_000, tokens=["1000/day"])
    early = driver.admitted(plain, 600)
    # In the same slot of the day: its 720 s hold both moments.
    driver.now += 1.0
    driver.admitted(daily, 500)
    driver.settle(early, 0)
    refusal = driver.refused(daily, 501)
    assert (refusal.window_s, refusal.used) == (86_400.0, 500)


def test_an_overrun_that_was_told_in_error_is_not_taken_from_others(driver: Driver) -> None:
    held = driver.admitted(tokens=100)
    driver.admitted(tokens=400)  # in the same slot
    driver.now += 1.0
    driver.renew((held, 300))
    driver.settle(held, 0)
    # Its reservation is back; the 200 beyond stay where they were recorded.
    assert driver.refused(tokens=401).used == 600


OWN_LIMITS = Tier(
    "Own",
    4,
    10,
    1_000,
    models={
        "big-*": {"concurrency": 1, "tokens_per_minute": 300},
        "small": {"requests_per_minute": 2},
    },
)


def test_a_model_with_limits_of_its_own_counts_under_these_alone(driver: Driver) -> None:
    held = driver.admitted(OWN_LIMITS, 300, model="big-1")
    assert held.standings.tokens.limit == 300
    assert (held.standings.concurrency.limit, held.standings.concurrency.remaining) == (1, 0)
    assert (held.standings.requests.limit, held.standings.requests.remaining) == (10, 9)
    refusal = driver.refused(OWN_LIMITS, 1, model="big-2")
    assert (refusal.code, refusal.scope) == ("tokens_limit_exceeded", "big-*")
    assert refusal.retry_after_s == 60.0
    # Its tokens and its slot leave the account's own alone; its request does not.
    other = driver.admitted(OWN_LIMITS, 1_000, model="other")
    assert other.standings.requests.remaining == 8
    assert other.standings.concurrency.remaining == 3
    for admission in (held, other):
        driver.settle(admission, 0)
    assert driver.admitted(OWN_LIMITS, 300, model="big-2").standings.tokens.remaining == 0
    for _ in range(2):
        driver.settle(driver.admitted(OWN_LIMITS, 0, model="small"), 0)
    refusal = driver.refused(OWN_LIMITS, 0, model="small")
    assert (refusal.code, refusal.limit) == ("requests_limit_exceeded", 2)


def test_slots_of_a_model_with_a_concurrency_of_its_own_are_none_of_the_accounts_own(
    driver: Driver,
) -> None:
    tier = Tier("T", 1, 100, 10_000, models={"m": {"concurrency": 3}})
    held = [driver.admitted(tier, model="m") for _ in range(3)]
    assert driver.refused(tier, model="m").scope == "m"
    own = driver.admitted(tier)
    assert own.standings.concurrency.remaining == 0
    refusal = driver.refused(tier)
    assert (refusal.code, refusal.limit, refusal.used) == ("concurrency_limit_exceeded", 1, 1)
    # However they end, the account's own slot is taken for as long as its own request runs.
    driver.settle(held.pop(), 10)
    driver.now = LEASE_S - 10.0
    driver.renew((own, 10), (held[0], 10))
    driver.now = LEASE_S
    assert driver.admitted(tier, model="m").standings.concurrency.remaining == 1
    assert driver.refused(tier).used == 1
    driver.settle(own, 10)
    assert driver.admitted(tier).standings.concurrency.remaining == 0


OWN_TOKENS = Tier("T", 10, 100, 10_000, models={"m": {"tokens_per_minute": 1_000_000}})


def test_what_a_model_with_tokens_of_its_own_does_not_use_is_given_back_to_it_alone(
    driver: Driver,
) -> None:
    driver.settle(driver.admitted(OWN_TOKENS, 9_000, model="other"), 9_000)
    for _ in range(3):
        driver.settle(driver.admitted(OWN_TOKENS, 900_000, model="m"), 10)
    assert driver.refused(OWN_TOKENS, 1_001, model="other").used == 9_000
    assert driver.admitted(OWN_TOKENS, 0, model="m").standings.tokens.remaining == 999_970


def test_what_a_model_with_tokens_of_its_own_uses_beyond_its_reservation_counts_for_it_alone(
    driver: Driver,
) -> None:
    driver.settle(driver.admitted(OWN_TOKENS, 1, model="other"), 1)
    first, second = (driver.admitted(OWN_TOKENS, 100, model="m") for _ in range(2))
    driver.renew((first, 20_000))
    driver.settle(second, 50_100)
    assert driver.admitted(OWN_TOKENS, 9_999, model="other").standings.tokens.remaining == 0
    assert driver.admitted(OWN_TOKENS, 0, model="m").standings.tokens.remaining == 929_900
    driver.settle(first, 20_000)
    assert driver.admitted(OWN_TOKENS, 0, model="m").standings.tokens.remaining == 929_900


def test_a_lost_lease_is_corrected_where_it_took_from_and_nowhere_else(driver: Driver) -> None:
    other = driver.admitted(OWN_TOKENS, 9_000, model="other")
    lost = driver.admitted(OWN_TOKENS, 900_000, model="m")
    driver.renew((other, 0), (lost, 5))
    driver.now = LEASE_S - 10.0
    driver.renew((other, 0))
    driver.now = LEASE_S
    assert driver.refused(OWN_TOKENS, 1_001, model="other").used == 9_000
    assert driver.admitted(OWN_TOKENS, 0, model="m").standings.tokens.remaining == 999_995
    driver.settle(lost, 7_005)
    assert driver.refused(OWN_TOKENS, 1_001, model="other").used == 9_000
    assert driver.admitted(OWN_TOKENS, 0, model="m").standings.tokens.remaining == 992_995


def test_a_rate_that_a_level_lacked_for_a_while_is_given_nothing_back_for_that_time(
    driver: Driver,
) -> None:
    plain = Tier("Plain", 10, 100, 100_000)
    daily = Tier("Daily", 10, 100, 100_000, tokens=["10000/day"])
    held = driver.admitted(daily, 9_000)
    driver.settle(driver.admitted(plain, 9_000), 0)
    over = driver.admitted(plain, 0)
    driver.settle(held, 9_000)
    driver.settle(over, 500)  # was never the day's
    refusal = driver.refused(daily, 1_001)
    assert (refusal.window_s, refusal.used) == (86_400.0, 9_000)


def test_more_rates_than_any_level_has_are_each_corrected_by_those_that_took_from_them(
    driver: Driver,
) -> None:
    levels = [
        Tier(f"{first}", 20, 100, 10**6, tokens=[f"1000000/{first + n} minute" for n in range(8)])
        for first in range(2, 34, 8)
    ]
    held = [driver.admitted(level, 1_000) for level in levels]
    for one, used in zip(held, (100, None, None, 1_300), strict=True):
        driver.settle(one, used)
    left = [driver.admitted(level, 0) for level in levels]
    # All of them count in the minute that they have in common.
    assert {one.standings.tokens.remaining for one in left} == {10**6 - 3_400}
    driver.now = 61.0
    for level, used in zip(levels, (100, 1_000, 1_000, 1_300), strict=True):
        assert driver.admitted(level, 0).standings.tokens.remaining == 10**6 - used


def test_a_refusal_by_one_group_takes_nothing_from_the_other(driver: Driver) -> None:
    driver.admitted(OWN_LIMITS, 300, model="big-1")
    for _ in range(20):
        driver.refused(OWN_LIMITS, 1, model="big-1")
    assert driver.admitted(OWN_LIMITS, 1, model="other").standings.requests.remaining == 8


def test_unenforced_limits_admit_and_say_what_would_have_refused(driver: Driver) -> None:
    for _ in range(3):
        driver.admitted(tokens=400, enforce=False)
    fourth = driver.admitted(tokens=400, enforce=False)
    assert fourth.would_refuse is not None
    assert fourth.would_refuse.code == "tokens_limit_exceeded"
    assert (fourth.would_refuse.used, fourth.would_refuse.requested) == (1_200, 400)
    assert fourth.standings.tokens.remaining == 0
    assert driver.in_progress() == 4
    # It counts: those that are enforced see it.
    assert driver.refused(tokens=1).used == 1_600


def test_no_minute_whatever_holds_more_than_the_limits(driver: Driver) -> None:
    """Never over: an independent log of admissions, looked at in every window of 60 s."""
    rng = random.Random(8)
    admitted: list[tuple[float, int]] = []
    running: list[tuple[Admission, int]] = []
    for _ in range(3_000):
        driver.now += rng.choice([0.0, 0.01, 0.1, 0.3, 2.0])
        tokens = rng.randint(0, 400)
        answer = driver.admit(SMALL, tokens)
        if isinstance(answer, Admission):
            admitted.append((driver.now, tokens))
            running.append((answer, tokens))
            assert len(running) <= SMALL.concurrency
        elif answer.code != "concurrency_limit_exceeded" and rng.random() < 0.3:
            # The moment at which it is told to fit is the sharpest: something has just left.
            until = driver.now + answer.retry_after_s
            while driver.now < until:
                driver.now = min(driver.now + LEASE_S / 3, until)
                driver.renew(*running)
        if running and rng.random() < 0.5:
            admission, tokens = running.pop(rng.randrange(len(running)))
            driver.settle(admission, tokens)
        elif running:
            driver.renew(*running)
    start = total = 0
    most_requests = most_tokens = 0
    for end, (moment, tokens) in enumerate(admitted):
        total += tokens
        while admitted[start][0] <= moment - 60.0 + 1e-9:
            total -= admitted[start][1]
            start += 1
        most_requests = max(most_requests, end - start + 1)
        most_tokens = max(most_tokens, total)
    assert most_requests == SMALL.requests_per_minute
    assert 0.9 * SMALL.tokens_per_minute < most_tokens <= SMALL.tokens_per_minute
