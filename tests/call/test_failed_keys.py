"""Failed keys: twenty a minute per network, exact to the moment, in bounded memory."""

import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st

from inf_middleware.call.failed_keys import FAILED_KEYS_PER_MINUTE, NETWORKS_MAX, FailedKeys
from tests.kit import Clock


def test_twenty_in_a_minute_are_counted_and_the_next_is_told_its_exact_wait() -> None:
    clock = Clock()
    failed = FailedKeys(clock=clock)
    for _ in range(FAILED_KEYS_PER_MINUTE):
        assert failed.count("192.0.2.1") is None
        clock.now += 1.0
    assert failed.count("192.0.2.1") == 60.0 - FAILED_KEYS_PER_MINUTE
    assert failed.count("192.0.2.2") is None
    clock.now += 60.0 - FAILED_KEYS_PER_MINUTE
    assert failed.count("192.0.2.1") is None
    assert failed.count("192.0.2.1") == 1.0


def test_a_refused_failure_counts_for_nothing() -> None:
    clock = Clock()
    failed = FailedKeys(2, clock=clock)
    failed.count("a")
    failed.count("a")
    for _ in range(59):
        clock.now += 1.0
        assert failed.count("a") == 1_060.0 - clock.now
    clock.now += 1.0
    assert failed.count("a") is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=80))
def test_no_window_ever_has_more_than_its_number(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    failed = FailedKeys(3, clock=clock)
    counted: dict[str, list[float]] = {"a": [], "b": [], "c": []}
    for network, wait_s in steps:
        clock.now += wait_s
        last = [moment for moment in counted[network] if moment > clock.now - 60.0]
        expected = None if len(last) < 3 else last[0] + 60.0 - clock.now
        assert failed.count(network) == expected
        if expected is None:
            counted[network].append(clock.now)


def test_100_000_addresses_take_no_more_memory_than_the_table_may() -> None:
    clock = Clock()
    failed = FailedKeys(clock=clock)
    tracemalloc.start()
    for number in range(100_000):
        failed.count(f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::/64")
        clock.now += 0.0001
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(failed) == NETWORKS_MAX
    assert size < 8 * 1024 * 1024


def test_of_too_many_networks_the_one_that_failed_longest_ago_is_forgotten() -> None:
    failed = FailedKeys(2, networks_max=3, clock=Clock())
    for network in ("a", "b", "c", "a", "d"):
        assert failed.count(network) is None
    assert failed.count("a") is not None  # it was counted twice
    assert failed.count("b") is None  # and this one's first is forgotten
    assert len(failed) == 3


def test_networks_whose_failures_are_past_are_dropped() -> None:
    clock = Clock()
    failed = FailedKeys(clock=clock)
    for number in range(1_000):
        failed.count(str(number))
    clock.now += 60.0
    for number in range(600):
        failed.count(f"later {number}")
    assert len(failed) == 600
