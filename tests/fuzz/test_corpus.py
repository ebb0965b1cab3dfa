"""All that a fuzzer found still holds, and so do the answers that the tests know, cut up."""

import pytest

from tests.fuzz.corpus import KEPT_MAX, kept, seeds
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_every_input_that_is_kept_holds(target: str) -> None:
    inputs = kept(target)
    assert 0 < len(inputs) <= KEPT_MAX
    for data in inputs:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_the_answers_of_each_api_hold_in_many_cuts(target: str) -> None:
    for data in seeds(target):
        for seed in range(12):
            TARGETS[target](data[:1] + bytes([seed]) + data[2:])
