from datetime import UTC, datetime
from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware import ConfigError, Price, Prices, Usage
from inf_middleware.domain.usage import TOKENS_MAX, token_count

COUNT = st.integers(0, TOKENS_MAX)


def test_the_shipped_prices_are_the_published_ones() -> None:
    prices = Prices.default()
    assert prices.currency == "CNY"
    assert [(p.model, p.input, p.output, p.context) for p in prices.prices] == [
        ("inf-chat-v1", "10", "10", 32_768),
        ("inf-chat-fin-v1", "20", "20", 32_768),
        ("inf-med-chat-v1", "20", "20", 32_768),
        ("inf-chat-int-v1", "20", "20", 32_768),
    ]
    assert [p.input_nano for p in prices.prices] == [10_000, 20_000, 20_000, 20_000]
    found = prices.find("inf-chat-int-v1")
    assert found is not None
    assert found.price.features == ("function calls", "structured output")


def test_input_and_output_are_both_charged_by_the_token() -> None:
    price = Price("m", "10", "30")
    lines = price.lines(Usage(1_000_000, 500_000))
    assert [(line.meter, line.quantity, line.amount_nano) for line in lines] == [
        ("input_tokens", 1_000_000, 10 * 10**9),
        ("output_tokens", 500_000, 15 * 10**9),
    ]


def test_cached_input_is_charged_once_at_its_own_price() -> None:
    price = Price("m", "10", "30", cached_input="1")
    lines = price.lines(Usage(100, 0, cached_input_tokens=40))
    assert [(line.meter, line.quantity, line.amount_nano) for line in lines] == [
        ("input_tokens", 60, 600_000),
        ("cached_input_tokens", 40, 40_000),
    ]
    plain = Price("m", "10", "30")
    assert [line.quantity for line in plain.lines(Usage(100, 0, cached_input_tokens=40))] == [100]


@given(COUNT, COUNT, st.integers(0, 2 * TOKENS_MAX))
def test_lines_are_disjoint_and_fit_64_bits(inputs: int, outputs: int, cached: int) -> None:
    price = Price("m", "4000000", "4000000", cached_input="0.001")
    usage = Usage(inputs, outputs, cached_input_tokens=cached)
    lines = price.lines(usage)
    assert sum(line.quantity for line in lines) == inputs + outputs
    assert sum(line.amount_nano for line in lines) < 2**63


@given(COUNT, COUNT)
def test_more_tokens_never_cost_less(fewer: int, more: int) -> None:
    price = Price("m", "10", "20")
    low, high = sorted((fewer, more))
    amounts = [sum(line.amount_nano for line in price.lines(Usage(n, n))) for n in (low, high)]
    assert amounts[0] <= amounts[1]


def test_a_price_is_found_by_name_alias_or_pattern() -> None:
    prices = Prices([Price("exact", "1", "1", aliases=["other"]), Price("Qwen/*", "2", "2")])
    for name, cost in (("exact", "1"), ("other", "1"), ("Qwen/Qwen3-8B", "2")):
        found = prices.find(name)
        assert found is not None
        assert found.price.input == cost
    assert prices.find("qwen/x") is None
    assert prices.find(None) is None


def test_a_new_price_is_a_dated_successor() -> None:
    text = """
    version = "mine"
    [[price]]
    model = "m"
    input = "1"
    output = "1"
    [[price]]
    model = "m"
    input = "2"
    output = "2"
    from = 2027-01-01T00:00:00Z
    """
    prices = Prices.from_toml(text)
    before = prices.find("m", datetime(2026, 12, 31, 23, 59, 59, tzinfo=UTC))
    after = prices.find("m", datetime(2027, 1, 1, tzinfo=UTC))
    assert before is not None
    assert after is not None
    assert (before.price.input, before.version) == ("1", "mine/m")
    assert (after.price.input, after.version) == ("2", "mine/m@2027-01-01T00:00:00Z")
    with pytest.raises(ConfigError, match="two prices from the same moment"):
        Prices([Price("m", "1", "1"), Price("m", "2", "2")])


NEW_YEAR = datetime(2027, 1, 1, tzinfo=UTC)
BEFORE, AFTER = datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 2, 1, tzinfo=UTC)


def found_at(prices: Prices, model: str, at: datetime) -> str | None:
    found = prices.find(model, at)
    return None if found is None else found.version


def test_a_model_whose_own_price_is_yet_to_come_costs_what_its_pattern_does() -> None:
    prices = Prices([Price("Qwen/*", "10", "10"), Price("Qwen/Big", "30", "30", since=NEW_YEAR)])
    assert found_at(prices, "Qwen/Big", BEFORE) == "custom/Qwen/*"
    assert found_at(prices, "Qwen/Big", AFTER) == "custom/Qwen/Big@2027-01-01T00:00:00Z"
    assert found_at(prices, "Qwen/Small", AFTER) == "custom/Qwen/*"


def test_the_successor_of_a_pattern_holds_for_no_pattern_before_it() -> None:
    prices = Prices(
        [
            Price("Qwen/*", "10", "10"),
            Price("*", "50", "50"),
            Price("*", "60", "60", since=NEW_YEAR),
            Price("Qwen/*", "11", "11", since=datetime(2028, 1, 1, tzinfo=UTC)),
        ]
    )
    assert found_at(prices, "Qwen/X", AFTER) == "custom/Qwen/*"
    assert found_at(prices, "Qwen/X", datetime(2028, 1, 1, tzinfo=UTC)) == (
        "custom/Qwen/*@2028-01-01T00:00:00Z"
    )
    assert found_at(prices, "other", BEFORE) == "custom/*"
    assert found_at(prices, "other", AFTER) == "custom/*@2027-01-01T00:00:00Z"


MOMENTS = [datetime(year, 1, 1, tzinfo=UTC) for year in (2026, 2027, 2028)]
NAMED_AND_DATED = st.tuples(
    st.sampled_from(["ab", "ac", "a*", "?b", "*"]), st.sampled_from([None, *MOMENTS])
)


@given(
    st.lists(NAMED_AND_DATED, unique=True, min_size=1),
    st.sampled_from(["ab", "ac", "b"]),
    st.sampled_from([BEFORE.replace(year=2025), *MOMENTS]),
)
def test_a_further_price_replaces_its_own_predecessor_or_what_comes_behind_it(
    listed: list[tuple[str, datetime | None]], model: str, at: datetime
) -> None:
    prices = [Price(name, "1", "1", since=since) for name, since in listed]
    further = prices[-1]
    price, before = (
        None if found is None else found.price
        for found in (Prices(some).find(model, at) for some in (prices, prices[:-1]))
    )
    if not fnmatchcase(model, further.model) or (further.since and further.since > at):
        assert price is before  # of another model, or yet to come
    elif before is None:
        assert price is further
    elif further.model == before.model:
        later = before.since is None or (further.since and further.since > before.since)
        assert price is (further if later else before)
    else:
        order = [model, *(name for name, _ in listed)]  # a model's own name before all patterns
        ahead = order.index(further.model) < order.index(before.model)
        assert price is (further if ahead else before)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[[price]]\nmodel='m'\ninput='1'", "p.toml: price 1 lacks output"),
        ("[[price]]\nmodel='m'\ninput=1.5\noutput='1'", "floats are not exact"),
        ("[[price]]\nmodel='m'\ninput='1'\noutput='-1'", "must be 0 or more"),
        ("[[price]]\nmodel='m'\ninput='1'\noutput='1'\nprompt='1'", "unknown prompt"),
        ("[[price]]\nmodel='m'\ninput='1'\noutput='1'\nfrom=2027-01-01T00:00:00", "UTC"),
        ("price = 1", r"no \[\[price\]\] table"),
    ],
)
def test_a_broken_price_list_says_where_and_what(toml: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Prices.from_toml(toml, source="p.toml")


@pytest.mark.parametrize("value", [True, 1.0, "1", None, -1, TOKENS_MAX + 1, 10**30])
def test_only_non_negative_integers_are_token_counts(value: object) -> None:
    assert token_count(value) is None


def test_an_explicit_zero_is_a_count() -> None:
    assert token_count(0) == 0
