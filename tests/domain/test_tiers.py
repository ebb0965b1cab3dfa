import dataclasses
import re
from typing import Any

import limits
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware import Account, ConfigError, Tier, Tiers
from inf_middleware.domain.rates import Rate

# The table of the design, section 2.
LEVELS = [
    ("Free", "0", 1, 4, 32_000),
    ("Tier1", "500", 4, 20, 128_000),
    ("Tier2", "3000", 8, 80, 256_000),
    ("Tier3", "10000", 24, 240, 384_000),
    ("Tier4", "50000", 32, 320, 512_000),
    ("Tier5", "100000", 48, 480, 768_000),
]


def test_the_shipped_levels_are_the_published_ones() -> None:
    shipped = [
        (t.name, t.recharged_from, t.concurrency, t.requests_per_minute, t.tokens_per_minute)
        for t in Tiers.default().tiers
    ]
    assert shipped == LEVELS


@pytest.mark.parametrize(
    ("recharged", "level"),
    [
        ("0", "Free"),
        ("499.999999999", "Free"),
        ("500", "Tier1"),
        ("2999.99", "Tier1"),
        ("3000", "Tier2"),
        ("9999.99", "Tier2"),
        ("10000", "Tier3"),
        ("50000.00", "Tier4"),
        ("99999.99", "Tier4"),
        (100_000, "Tier5"),
        ("9000000000", "Tier5"),
    ],
)
def test_a_boundary_belongs_to_the_higher_level(recharged: str | int, level: str) -> None:
    assert Tiers.default().for_recharge(recharged).name == level


@given(st.integers(0, 10**15), st.integers(0, 10**15))
def test_more_recharge_is_never_a_lower_level(fen: int, more: int) -> None:
    tiers = Tiers.default()
    lower = tiers.for_recharge(f"{fen // 10**6}.{fen % 10**6:06d}")
    total = fen + more
    higher = tiers.for_recharge(f"{total // 10**6}.{total % 10**6:06d}")
    assert lower.recharged_from_nano <= higher.recharged_from_nano


def test_a_recharge_is_never_a_float() -> None:
    with pytest.raises(ConfigError, match="floats are not exact"):
        Tiers.default().for_recharge(500.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="recharged of account acme"):
        Account("acme", recharged=500.0)  # type: ignore[arg-type]


def test_level_names_are_read_without_regard_to_case() -> None:
    tiers = Tiers.default()
    assert tiers.named("FREE") is tiers.named("free") is tiers.tiers[0]
    with pytest.raises(ConfigError, match="there are Free, Tier1, Tier2"):
        tiers.named("gold")


def test_a_pinned_level_beats_the_recharge() -> None:
    tiers = Tiers.default()
    own = Tier("special", 2, 3, 4)
    assert tiers.of(Account("a", recharged="500")).name == "Tier1"
    assert tiers.of(Account("a", tier="tier5", recharged="500")).name == "Tier5"
    assert tiers.of(Account("a", tier=own)) is own


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Tiers.default().tiers[0].concurrency = 2  # type: ignore[misc]


def test_further_rates_are_read_in_the_notation_of_limits() -> None:
    tier = Tier("day", 1, 4, 32_000, requests=["1000/day"], tokens=["10000000/day", "5 per 2 hour"])
    assert [(r.metric, r.limit, r.window_s) for r in tier.rates] == [
        ("requests", 4, 60.0),
        ("tokens", 32_000, 60.0),
        ("requests", 1000, 86_400.0),
        ("tokens", 10_000_000, 86_400.0),
        ("tokens", 5, 7_200.0),
    ]
    assert tier.limits_for(None).tokens_max == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"concurrency": 0}, "concurrency of tier t is 0"),
        ({"concurrency": True}, "concurrency of tier t is True"),
        ({"requests_per_minute": 1.5}, "requests_per_minute of tier t is 1.5"),
        ({"tokens_per_minute": -1}, "tokens_per_minute of tier t is -1"),
        ({"tokens_per_minute": 10**13}, "whole number from 1 to"),
        ({"name": " "}, "a tier needs a name"),
        ({"recharged_from": "-5"}, "recharged_from of tier t"),
        ({"requests": ["many"]}, 'write a rate such as "1000/day"'),
        ({"tokens": "1000/day"}, "write a list"),
    ],
)
def test_a_limit_that_cannot_hold_is_refused_in_words(
    change: dict[str, object], message: str
) -> None:
    fields = {"name": "t", "concurrency": 1, "requests_per_minute": 1, "tokens_per_minute": 1}
    with pytest.raises(ConfigError, match=message):
        Tier(**{**fields, **change})  # type: ignore[arg-type]


FIVE_UP = """
[[tier]]
name = "a"
concurrency = 1
requests_per_minute = 1
tokens_per_minute = 1
recharged_from = "5"
"""


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("", r"mine.toml has no \[\[tier\]\] table"),
        ("[[tier]]\nname = 'a'", "mine.toml: tier 1 lacks concurrency, requests_per_minute"),
        ("rate = 1\n[[tier]]", "mine.toml has unknown rate; known are tier"),
        ("[[tier]]\nname = ", "mine.toml: "),
        (
            "[[tier]]\nname='a'\nrpm=1\n",
            "mine.toml: tier 1 has unknown rpm; known are concurrency",
        ),
        (
            FIVE_UP,
            "for new accounts",
        ),
    ],
)
def test_a_broken_file_of_levels_says_where_and_what(toml: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tiers.from_toml(toml, source="mine.toml")


def test_two_tiers_of_one_name_or_boundary_are_refused() -> None:
    free = Tier("Free", 1, 1, 1)
    with pytest.raises(ConfigError, match="one name"):
        Tiers([free, Tier("FREE", 1, 1, 1, "5")])
    with pytest.raises(ConfigError, match="one recharged_from"):
        Tiers([free, Tier("other", 1, 1, 1, "0.00")])


def test_models_have_limits_of_their_own_by_name_before_pattern() -> None:
    tier = Tier(
        "own",
        4,
        20,
        1_000,
        models={
            "big-*": {"concurrency": 1, "tokens": ["5000/day"]},
            "big-one": {"requests_per_minute": 2},
        },
    )
    (own,) = tier.groups_for("other")
    assert tier.groups_for(None) == (own,)
    kept, group = tier.groups_for("big-one")
    assert (kept.concurrency, [rate.metric for rate in kept.rates]) == (4, ["tokens"])
    assert (group.scope, group.concurrency) == ("big-one", None)
    assert group.rates == (Rate("requests", 2, 60.0),)
    kept, group = tier.groups_for("big-two")
    assert (kept.concurrency, [rate.metric for rate in kept.rates]) == (None, ["requests"])
    assert (group.concurrency, group.rates) == (1, (Rate("tokens", 5_000, 86_400.0),))


def test_limits_of_a_model_are_read_from_toml() -> None:
    tiers = Tiers.from_toml(
        """
        [[tier]]
        name = "Free"
        concurrency = 1
        requests_per_minute = 4
        tokens_per_minute = 32_000

        [tier.models."Qwen/*"]
        requests_per_minute = 2
        """
    )
    assert tiers.named("free").groups_for("Qwen/3")[1].rates == (Rate("requests", 2, 60.0),)


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({"m": {}}, "name a limit"),
        ({"m": {"rpm": 1}}, "unknown rpm; known are concurrency"),
        ({"m": {"concurrency": 0}}, "whole number from 1"),
        ({"m": {"tokens": "5/day"}}, "write a list"),
        ({"m": {"tokens": ["soon"]}}, 'such as "1000/day"'),
        ({"": {"concurrency": 1}}, "write the model's name"),
        ({"m": {"requests": ["1/day"] * 9}}, "at most 8"),
        ([], "give a mapping"),
    ],
)
def test_limits_of_a_model_that_cannot_hold_are_refused(models: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        Tier("own", 4, 20, 1_000, models=models)


def test_further_rates_may_be_items_of_the_limits_package() -> None:
    tier = Tier("item", 1, 4, 32_000, requests=[limits.RateLimitItemPerDay(7)])
    assert tier.rates[-1] == Rate("requests", 7, 86_400.0)
