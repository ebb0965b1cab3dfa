"""Promises 1, 2 and 8 in the store of one process, on an injected clock."""

import asyncio
import random
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_middleware import Tier, Tiers
from inf_middleware.domain.limits import Admission, Refusal
from inf_middleware.stores.memory import MemoryStore
from tests.kit import Clock

FREE = Tiers.default().named("free")
SMALL = Tier("Small", 3, 5, 1_000)
LARGE = Tier("Large", 4, 8, 3_000)


class Driver:
    """Calls a store without an event loop: its answers never wait."""

    def __init__(self) -> None:
        self.clock = Clock(0.0)
        self.store = MemoryStore(clock=self.clock)
        self.calls = 0

    def admit(self, tier: Tier = SMALL, tokens: int = 10, account: str = "a") -> Any:
        self.calls += 1
        return run(self.store.admit(f"call-{self.calls}", account, tier, tokens))

    def admitted(self, tier: Tier = SMALL, tokens: int = 10, account: str = "a") -> Admission:
        answer = self.admit(tier, tokens, account)
        assert isinstance(answer, Admission)
        return answer

    def refused(self, tier: Tier = SMALL, tokens: int = 10, account: str = "a") -> Refusal:
        answer = self.admit(tier, tokens, account)
        assert isinstance(answer, Refusal)
        return answer

    def settle(self, admission: Admission, tokens: int | None) -> None:
        run(self.store.settle(admission, tokens))


def run(step: Any) -> Any:
    try:
        step.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("the store waited")


def test_the_wait_of_a_refusal_is_exact_over_all_limits_at_once() -> None:
    driver = Driver()
    for later in (0.0, 1.5, 0.25, 3.0, 0.1):
        driver.clock.now += later
        driver.settle(driver.admitted(tokens=190), 190)
    driver.clock.now += 2.0
    refusal = driver.refused(tokens=300)
    # The requests fit when the first leaves, at 60 s; the tokens only when the second does too.
    assert refusal.code == "tokens_limit_exceeded"
    assert (refusal.limit, refusal.used, refusal.requested) == (1_000, 950, 300)
    assert refusal.retry_after_s == pytest.approx(61.75 - driver.clock.now, abs=1e-6)
    driver.clock.now += refusal.retry_after_s - 0.000_001
    assert isinstance(driver.admit(tokens=300), Refusal)
    driver.clock.now += 0.000_001
    driver.admitted(tokens=300)


def test_a_refusal_takes_nothing_from_any_limit() -> None:
    driver = Driver()
    held = driver.admitted(tokens=900)
    before = driver.refused(tokens=200).standings
    for _ in range(50):
        assert driver.refused(tokens=200).standings == before
    driver.settle(held, 0)
    after = driver.admitted(tokens=1_000).standings
    assert (after.requests.remaining, after.tokens.remaining) == (3, 0)


def test_an_admitted_request_counts_whatever_becomes_of_it() -> None:
    driver = Driver()
    for _ in range(5):
        driver.settle(driver.admitted(), 0)
    assert driver.refused().code == "requests_limit_exceeded"


def test_unused_reservation_returns_and_an_overrun_is_recorded() -> None:
    driver = Driver()
    driver.settle(driver.admitted(tokens=800), 100)
    driver.settle(driver.admitted(tokens=100), 950)
    refusal = driver.refused(tokens=1)
    assert refusal.used == 1_050
    assert refusal.standings.tokens.remaining == 0
    # The overrun became known now, and stays for a whole window from now.
    driver.clock.now += 59.999
    assert driver.refused(tokens=1_000).used == 1_050
    driver.clock.now += 0.001
    driver.admitted(tokens=1_000)


def test_an_aborted_call_keeps_its_reservation() -> None:
    driver = Driver()
    driver.settle(driver.admitted(tokens=700), None)
    assert driver.store.in_progress("a") == 0
    assert driver.refused(tokens=400).used == 700


def test_a_late_refund_mints_nothing() -> None:
    driver = Driver()
    late = driver.admitted(tokens=1_000)
    driver.clock.now += 61.0
    fresh = driver.admitted(tokens=600)
    driver.settle(late, 0)
    assert driver.refused(tokens=401).used == 600
    driver.settle(fresh, 600)


def test_settling_twice_does_nothing() -> None:
    driver = Driver()
    first, second = driver.admitted(tokens=100), driver.admitted(tokens=100)
    driver.settle(first, 50)
    driver.settle(first, 0)
    driver.settle(first, 10_000)
    assert driver.store.in_progress("a") == 1
    driver.settle(second, 100)
    assert driver.admitted(tokens=850).standings.tokens.remaining == 0


def test_only_concurrency_full_is_one_second_called_an_estimate() -> None:
    driver = Driver()
    held = [driver.admitted() for _ in range(3)]
    refusal = driver.refused()
    assert (refusal.code, refusal.retry_after_s) == ("concurrency_limit_exceeded", 1.0)
    assert (refusal.limit, refusal.used, refusal.requested) == (3, 3, 1)
    driver.settle(held[0], 10)
    driver.admitted()


def test_a_level_changed_between_two_requests_counts_from_the_next() -> None:
    driver = Driver()
    for _ in range(5):
        driver.settle(driver.admitted(SMALL), 10)
    assert isinstance(driver.admit(SMALL), Refusal)
    assert driver.admitted(LARGE).standings.requests.remaining == 2
    assert isinstance(driver.admit(SMALL), Refusal)


def test_further_rates_bind_in_the_same_step() -> None:
    tier = Tier("Daily", 10, 100, 10_000, requests=["3/hour"], tokens=["500/day"])
    driver = Driver()
    driver.settle(driver.admitted(tier, 400), 400)
    refusal = driver.refused(tier, 101)
    assert (refusal.code, refusal.window_s, refusal.limit) == (
        "tokens_limit_exceeded",
        86_400.0,
        500,
    )
    assert refusal.standings.tokens.limit == 500
    driver.admitted(tier, 50)
    driver.admitted(tier, 50)
    refusal = driver.refused(tier, 0)
    assert (refusal.code, refusal.window_s) == ("requests_limit_exceeded", 3_600.0)
    driver.clock.now += 3_600.0
    assert driver.refused(tier, 1).window_s == 86_400.0
    driver.admitted(tier, 0)


def test_a_clock_that_goes_back_lets_nothing_leave_early_or_stay_longer() -> None:
    driver = Driver()
    driver.clock.now = 100.0
    for _ in range(5):
        driver.settle(driver.admitted(), 1)
    driver.clock.now = 50.0
    assert driver.refused().retry_after_s == 60.0
    driver.clock.now = 160.0
    driver.admitted()


def test_idle_accounts_are_dropped_on_the_way() -> None:
    driver = Driver()
    busy = driver.admitted(account="busy")
    for number in range(1_000):
        driver.settle(driver.admitted(account=f"account-{number}"), 1)
    assert len(driver.store) == 1_001
    driver.clock.now += 61.0
    for _ in range(600):
        driver.clock.now += 61.0
        driver.settle(driver.admitted(account="other"), 1)
    assert len(driver.store) == 2
    assert driver.store.in_progress("busy") == 1
    driver.settle(busy, 5)


def test_more_tokens_than_the_level_holds_wait_the_whole_window() -> None:
    driver = Driver()
    assert driver.refused(tokens=1_001).retry_after_s == 60.0


def test_answers_never_wait_so_that_one_loop_decides_in_one_step() -> None:
    driver = Driver()

    async def both() -> list[Any]:
        return await asyncio.gather(*(driver.store.admit(f"{n}", "a", FREE, 1) for n in range(9)))

    admitted = [answer for answer in asyncio.run(both()) if isinstance(answer, Admission)]
    assert len(admitted) == 1


STEP = st.tuples(
    st.sampled_from(["admit", "settle", "wait"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from([SMALL, LARGE]),
    st.integers(0, 1_500),
    st.sampled_from([0.001, 0.2, 0.5, 3.0, 20.0, 59.5, 60.0]),
)


@settings(max_examples=200)
@given(st.lists(STEP, max_size=60))
def test_decisions_are_those_of_a_reference_that_keeps_every_event(
    steps: list[tuple[str, str, Tier, int, float]],
) -> None:
    """The reference: an addition counts until 60 s after the latest of its half-second slot."""
    driver = Driver()
    added: dict[tuple[str, str], list[list[float]]] = defaultdict(list)  # [moment, amount]
    held: dict[str, list[tuple[Admission, list[float]]]] = defaultdict(list)

    def slot(moment: float) -> int:
        return round(moment * 1_000_000) // 500_000

    def total(account: str, metric: str) -> float:
        of = added[account, metric]
        latest = {slot(m): max(n for n, _ in of if slot(n) == slot(m)) for m, _ in of}
        now = driver.clock.now
        return sum(a for m, a in of if round((latest[slot(m)] + 60 - now) * 1e6) > 0)

    for kind, account, tier, amount, later in steps:
        now = driver.clock.now
        if kind == "wait":
            driver.clock.now = round(now + later, 6)
        elif kind == "settle" and held[account]:
            admission, entry = held[account].pop(amount % len(held[account]))
            driver.settle(admission, amount)
            window_has_it = total(account, "tokens")  # what counts before
            entry_amount = entry[1]
            if amount < entry_amount:
                entry[1] = float(amount)
            elif amount > entry_amount:
                added[account, "tokens"].append([now, amount - entry_amount])
            assert window_has_it >= 0
        elif kind == "admit":
            fits = (
                len(held[account]) < tier.concurrency
                and total(account, "requests") + 1 <= tier.requests_per_minute
                and total(account, "tokens") + amount <= tier.tokens_per_minute
            )
            answer = driver.admit(tier, amount, account)
            assert isinstance(answer, Admission) is fits
            if isinstance(answer, Admission):
                entry = [now, float(amount)]
                added[account, "tokens"].append(entry)
                added[account, "requests"].append([now, 1])
                held[account].append((answer, entry))
            tokens = answer.standings.tokens
            assert tokens.remaining == max(tokens.limit - total(account, "tokens"), 0)
            assert driver.store.in_progress(account) == len(held[account])


def test_no_minute_whatever_holds_more_than_the_limits() -> None:
    """Never over: an independent log of admissions, looked at in every window of 60 s."""
    rng = random.Random(8)
    driver = Driver()
    admitted: list[tuple[float, int]] = []
    running: list[tuple[Admission, int]] = []
    for _ in range(20_000):
        driver.clock.now += rng.choice([0.0, 0.01, 0.3, 2.0])
        tokens = rng.randint(0, 400)
        answer = driver.admit(SMALL, tokens)
        if isinstance(answer, Admission):
            admitted.append((driver.clock.now, tokens))
            running.append((answer, tokens))
            assert len(running) <= SMALL.concurrency
        if running and rng.random() < 0.5:
            admission, tokens = running.pop(rng.randrange(len(running)))
            driver.settle(admission, tokens)
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
