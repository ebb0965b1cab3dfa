"""The simulator itself: a seed is a story that can be told again, and a broken promise ends it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulate.limits_model import Bounds, Broken, LimitsModel

ROOT = Path(__file__).parents[2]
S = 1_000_000
BOUNDS = Bounds(concurrency=2, requests=3, tokens=100)


def simulate(*arguments: str, source: Path = ROOT / "src") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.simulate", "--jobs", "1", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
    )


def test_a_seed_is_replayed_exactly_whatever_ran_before_it() -> None:
    alone = simulate("--seeds", "5:6", "--steps", "600", "--trace")
    after_another = simulate("--seeds", "4:6", "--steps", "600", "--trace")
    story = alone.stdout[: alone.stdout.index("things happened")]
    assert len(story.splitlines()) > 50, alone.stderr
    assert story in after_another.stdout


def test_a_broken_promise_is_told_with_its_seed(tmp_path: Path) -> None:
    source = tmp_path / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    prices = source / "inf_middleware" / "domain" / "prices.py"
    text = prices.read_text("utf-8")
    broken = text.replace("unit = self.output_nano", "unit = 0")
    assert broken != text
    prices.write_text(broken, "utf-8")
    told = simulate("--seeds", "0:4", "--steps", "2000", source=source)
    assert told.returncode == 1
    assert "FAILED" in told.stdout


def admit(model: LimitsModel, now: int, call: str, tokens: int = 10, wait_us: int = 0) -> None:
    model.admit(now, "a", call, tokens, BOUNDS, 30 * S, admitted=not wait_us, wait_us=wait_us)


@pytest.mark.parametrize(
    ("tokens", "ends", "message"),
    [(10, False, "in progress"), (60, True, "tokens of 100"), (10, True, "within a minute")],
)
def test_the_model_admits_nothing_over_a_limit(tokens: int, ends: bool, message: str) -> None:
    model = LimitsModel()
    fit = {"in progress": 2, "tokens of 100": 1, "within a minute": 3}[message]
    for number in range(fit):
        admit(model, number, str(number), tokens)
        if ends:
            model.settle(number, "a", str(number), None)
    with pytest.raises(Broken, match=message):
        admit(model, fit, "one more", tokens)


def test_the_model_gives_back_what_was_not_used_and_counts_what_was_beyond() -> None:
    model = LimitsModel()
    admit(model, 0, "one", 50)
    model.settle(1 * S, "a", "one", 20)
    assert model.counts("a", 1 * S) == (0, 1, 20)
    admit(model, 2 * S, "two", 50)
    model.settle(20 * S, "a", "two", 80)
    assert model.counts("a", 61 * S) == (0, 1, 80)
    assert model.counts("a", 63 * S) == (0, 0, 30)
    assert model.counts("a", 81 * S) == (0, 0, 0)


@pytest.mark.parametrize(("wait_us", "message"), [(40 * S, "not enough"), (59 * S, "too long")])
def test_the_model_takes_no_other_wait_than_the_exact_one(wait_us: int, message: str) -> None:
    model = LimitsModel()
    for number in range(3):
        admit(model, number, str(number))
        model.settle(number, "a", str(number), None)
    admit(model, 10 * S, "refused", wait_us=50 * S + 2)
    with pytest.raises(Broken, match=message):
        admit(model, 10 * S, "refused", wait_us=wait_us)
