"""The checker of the logs finds what is over, and nothing else."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.live.admissions import (
    Served,
    at_once_on_average,
    in_window_on_average,
    most_at_once,
    most_in_window,
    one,
    read_logs,
    tokens,
)

moments = st.integers(0, 60).map(lambda number: number / 4)


@st.composite
def calls(draw: st.DrawFn) -> Served:
    arrived, took, held = draw(moments), draw(moments) / 10, draw(moments)
    entered = arrived + took
    return Served("sk", draw(st.integers(0, 9)), arrived, entered, entered + held)


def at(*entered: float, took: float = 0.0) -> list[Served]:
    return [Served("sk", 10, moment - took, moment, moment + 1) for moment in entered]


@given(st.lists(calls(), min_size=1, max_size=30), st.integers(1, 8))
def test_the_most_in_a_window_is_that_of_trying_every_last_entry(
    served: list[Served], window_s: int
) -> None:
    tried = [
        sum(
            call.tokens
            for call in served
            if call.entered <= last.entered and call.arrived > last.entered - window_s
        )
        for last in served
    ]
    assert most_in_window(served, window_s, tokens) == max(tried)


@given(st.lists(calls(), min_size=1, max_size=30))
def test_the_most_at_once_is_that_of_trying_every_entry(served: list[Served]) -> None:
    tried = [sum(call.entered <= now.entered < call.ended for call in served) for now in served]
    assert most_at_once(served) == max(tried)


def test_a_full_window_again_and_again_is_not_over() -> None:
    served = at(*[number * 1.0 for number in range(20)])
    assert most_in_window(served, 5.0, one) == 5
    assert most_in_window(served, 5.0, tokens) == 50


def test_one_request_too_many_across_a_boundary_is_found() -> None:
    # Two fixed windows, each of five requests: within its limit, and ten in half a second.
    served = at(4.6, 4.7, 4.8, 4.9, 4.99, 5.0, 5.1, 5.2, 5.3, 5.4)
    assert most_in_window(served, 5.0, one) == 10
    assert most_in_window(at(*range(6), 4.999), 5.0, one) == 6


def test_a_delay_before_the_log_is_no_proof() -> None:
    late_then_prompt = [*at(1.2, took=0.2), *at(6.1, took=0.0)]
    assert most_in_window(late_then_prompt, 5.0, one) == 1
    assert most_in_window(at(1.2, 6.1, took=0.05), 5.0, one) == 2


def test_two_at_once_are_found_and_one_after_the_other_are_not() -> None:
    assert most_at_once(at(0.0, 1.0, 2.0)) == 1
    assert most_at_once(at(0.0, 0.999)) == 2


def test_the_share_used_of_a_burst_in_each_window_is_whole() -> None:
    bursts = at(*[start for start in (0.0, 5.0, 10.0, 15.0) for _ in range(4)])
    assert in_window_on_average(bursts, 5.0, one, 5.0, 17.0) == pytest.approx(4.0)
    late = at(*[start for start in (0.0, 5.1, 10.2, 15.3) for _ in range(4)])
    assert in_window_on_average(late, 5.0, one, 5.0, 15.3) == pytest.approx(4 * 5.0 / 5.15, 0.02)
    assert at_once_on_average(at(0.0, 2.0), 0.0, 4.0) == pytest.approx(0.5)


def test_what_a_killed_process_left_undone_ends_with_it(tmp_path: Path) -> None:
    lines = [
        ["begin", 0, "sk-a", 18, 1.0, 1.1],
        ["begin", 1, "sk-a", 18, 2.0, 2.1],
        ["end", 0, 3.0],
    ]
    text = "\n".join(map(json.dumps, lines))
    (tmp_path / "17.log").write_text(text + '\n["begin", 2, "sk')
    done = Served("sk-a", 18, 1.0, 1.1, 3.0)
    assert read_logs(tmp_path, {17: 4.5}) == [done, Served("sk-a", 18, 2.0, 2.1, 4.5)]
    assert read_logs(tmp_path) == [done, Served("sk-a", 18, 2.0, 2.1, math.inf)]
