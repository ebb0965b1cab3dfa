"""Money as integers of nano units (1e-9) of the currency.

¥10 per 1M tokens is exactly 10,000 nano per token, so a request's cost is a sum of products of
integers and nothing is ever rounded. Decimals exist only at the edges: price list, recharge and
export.
"""

from decimal import Decimal, InvalidOperation

from inf_middleware.domain.errors import ConfigError

NANO = 1_000_000_000  # nano units in one unit of the currency

AMOUNT_NANO_MAX = 2**63 - 1  # what a 64-bit integer column of SQLite or PostgreSQL holds

# With at most 1e9 tokens a side (usage.TOKENS_MAX) two lines at this price still fit 64 bits.
PRICE_NANO_PER_TOKEN_MAX = 4_000_000_000


def decimal_of(value: object, what: str) -> Decimal:
    """Read an amount given as a decimal string, an int or a Decimal.

    Raises:
        ConfigError: A float or bool (they are not exact amounts), a negative, or not a number.
    """
    if isinstance(value, bool | float) or not isinstance(value, str | int | Decimal):
        raise ConfigError(
            f'{what} is {value!r}; write it as a decimal string such as "12.50"'
            " (floats are not exact)"
        )
    try:
        amount = Decimal(value)
    except InvalidOperation:
        raise ConfigError(f'{what} is {value!r}; write a decimal such as "12.50"') from None
    if not amount.is_finite() or amount < 0:
        raise ConfigError(f"{what} is {value!r}; it must be 0 or more")
    return amount


def nano_of(value: object, what: str) -> int:
    """Convert an amount of money to nano units.

    Raises:
        ConfigError: Not an exact amount, finer than one nano, or over 64 bits.
    """
    amount = decimal_of(value, what)
    if amount > AMOUNT_NANO_MAX // NANO:
        raise ConfigError(f"{what} is {value!r}; the largest amount is 9,223,372,036")
    return _whole(amount, 9, f"{what} is {value!r}; the finest amount is 0.000000001")


def nano_per_token(per_million: object, what: str) -> int:
    """Convert a price per 1M tokens to nano units per token.

    Raises:
        ConfigError: The price is not a whole number of nano per token, or is out of range.
    """
    price = decimal_of(per_million, what)
    if price > PRICE_NANO_PER_TOKEN_MAX // 1000:
        raise ConfigError(f"{what} is {per_million!r} per 1M tokens; the largest is 4,000,000")
    return _whole(  # 1e9 nano / 1e6 tokens
        price,
        3,
        f"{what} is {per_million!r} per 1M tokens; the finest price is 0.001 per 1M tokens,"
        " which is one nano per token",
    )


# Places of a decimal that are looked at: far finer than any unit, and far from "1e-999999999",
# whose fraction has an integer of 400 MB.
_PLACES_MAX = 1_000


def _whole(amount: Decimal, places: int, otherwise: str) -> int:
    exponent = amount.as_tuple().exponent
    if isinstance(exponent, int) and exponent < -_PLACES_MAX:
        raise ConfigError(otherwise)
    # Compared as fractions of integers: Decimal arithmetic would round at 28 digits.
    numerator, denominator = amount.as_integer_ratio()
    whole: int
    whole, rest = divmod(numerator * 10**places, denominator)
    if rest:
        raise ConfigError(otherwise)
    return whole


def decimal_string(nano: int) -> str:
    """Write nano units as a decimal string of the currency, without needless zeros: "0.00123"."""
    digits = str(nano).zfill(10 if nano >= 0 else 11)
    whole, fraction = digits[:-9], digits[-9:].rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole
