"""Which counter counts for which model, and a model's own tokenizer.json."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers

from inf_middleware.domain.errors import ConfigError
from inf_middleware.tokens.chat import CHATML_PROFILE, OPENAI_PROFILE, Profile
from inf_middleware.tokens.counters import Counters, Counting
from inf_middleware.tokens.counting import Count, Counter

ENCODING = tiktoken.Encoding("x", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={})


@pytest.fixture
def tokenizer_json(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(models.WordLevel({"one": 0, "two": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.enable_truncation(2)  # as some models' files have it: it must not cut a bill
    tokenizer.enable_padding(length=50)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize("as_text", [True, False])
def test_a_tokenizer_json_counts_whole_texts(tokenizer_json: Path, as_text: bool) -> None:
    counter = Counter(str(tokenizer_json) if as_text else tokenizer_json)
    assert asyncio.run(counter.count(["one two two", "x \ud800 one"])) == Count(6, True)
    assert counter.bounds(1000) == (0, None)


def test_a_tokenizer_json_is_loaded_before_the_first_request(tokenizer_json: Path) -> None:
    counters = Counters({"a/*": str(tokenizer_json), "*": len})
    asyncio.run(counters.load())
    assert counters.of("a/b").count_now(["one two"]).tokens == 2
    assert counters.of("other").count_now(["one two"]).tokens == 7


def test_what_is_no_tokenizer_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file"):
        Counter("no/tokenizer.json")
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{}")
    with pytest.raises(ConfigError, match=r"is no tokenizer\.json"):
        asyncio.run(Counter(broken).load())
    # Without a start of the server it is known only at the first text, which is then estimated.
    assert Counter(broken).count_now(["four"]) == Count(1, False)


def test_the_first_pattern_that_fits_decides() -> None:
    counters = Counters({"a/*": lambda _: 1, "a/b": lambda _: 2, "*": lambda _: 3})
    assert [counters.of(name).count_now(["x"]).tokens for name in ("a/b", "c", None)] == [1, 3, 3]
    assert Counters({"a": lambda _: 1}).of("b").count_now(["hello world"]).tokens == 2


def test_profiles_are_known_by_name_or_given() -> None:
    own = Profile(per_message=9)
    counters = Counters({"mine": Counting(profile=own), "*": "cl100k_base"})
    assert counters.profile_of("mine") == own
    assert counters.profile_of("Qwen/Qwen3-8B") == CHATML_PROFILE
    assert counters.profile_of("gpt") == counters.profile_of(None) == OPENAI_PROFILE


@pytest.mark.parametrize(
    ("given", "model", "own"),
    [
        ("o200k_base", "m", False),
        ({"m": "o200k_base"}, "m", True),
        ({"m": "o200k_base"}, "other", False),
        (len, "m", True),
        (
            tiktoken.Encoding("x", pat_str=".", mergeable_ranks={b"a": 0}, special_tokens={}),
            "m",
            True,
        ),
    ],
)
def test_a_counter_is_the_models_own_where_it_is_said_to_be(
    given: Any, model: str, own: bool
) -> None:
    assert Counters(given).is_own(model) is own


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({5: "o200k_base"}, "a mapping goes from model pattern to counter"),
        ({"": "o200k_base"}, "a mapping goes from model pattern to counter"),
        ({"a": 7}, "give an encoding's name"),
        (Counting(profile=Profile(per_message=-1)), "whole numbers of 0 or more"),
        (Counting(profile=5), "give a Profile"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_count_is_refused(given: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Counters(given)
