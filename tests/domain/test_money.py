from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.money import (
    AMOUNT_NANO_MAX,
    decimal_string,
    nano_of,
    nano_per_token,
)


@pytest.mark.parametrize(
    ("price", "nano"),
    [
        ("10", 10_000),
        ("20", 20_000),
        ("0.5", 500),
        ("0.001", 1),
        (Decimal("1.25"), 1250),
        (3, 3000),
    ],
)
def test_a_price_is_a_whole_number_of_nano_per_token(price: object, nano: int) -> None:
    assert nano_per_token(price, "p") == nano


@pytest.mark.parametrize("price", ["0.0001", "1.00001", Decimal("0.00005")])
def test_a_price_finer_than_one_nano_per_token_is_refused(price: object) -> None:
    with pytest.raises(ConfigError, match=r"finest price is 0\.001 per 1M tokens"):
        nano_per_token(price, "p")


@pytest.mark.parametrize(
    "amount", [1.5, True, None, "ten", "-1", "NaN", "Infinity", b"1", "1e999999", [], "9223372037"]
)
def test_what_is_no_exact_amount_is_refused_in_words(amount: object) -> None:
    with pytest.raises(ConfigError, match="amount of acme"):
        nano_of(amount, "amount of acme")
    with pytest.raises(ConfigError, match="price of m"):
        nano_per_token(amount if amount != "9223372037" else "4000001", "price of m")


def test_an_amount_is_exact_to_the_last_nano_of_64_bits() -> None:
    assert nano_of("9223372035.999999999", "a") == 9_223_372_035_999_999_999
    assert nano_of("0.000000001", "a") == 1
    with pytest.raises(ConfigError, match="finest amount"):
        nano_of("0.0000000001", "a")
    with pytest.raises(ConfigError, match="finest amount"):
        nano_of("1.00000000000000000000000000000000000001", "a")
    # Read as a fraction it would take 400 MB, and hours.
    with pytest.raises(ConfigError, match="finest amount"):
        nano_of("1e-999999999", "a")


@given(st.integers(0, AMOUNT_NANO_MAX - 10**9))
def test_an_amount_survives_its_decimal_string(nano: int) -> None:
    assert nano_of(decimal_string(nano), "a") == nano


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0"), (10_000, "0.00001"), (10**9, "1"), (1_500_000_000, "1.5"), (-1, "-0.000000001")],
)
def test_a_decimal_string_has_no_needless_zeros(nano: int, text: str) -> None:
    assert decimal_string(nano) == text
