"""Numbers, amounts and times as people read them."""

import math
from collections.abc import Sequence

from inf_middleware.domain.money import NANO

_SIGNS = {"CNY": "¥"}

# From so many seconds on a time is told in the next unit.
_STEPS = ((120.0, 1.0), (7_200.0, 60.0), (172_800.0, 3_600.0), (math.inf, 86_400.0))

# U+2212: as wide as a digit, and no hyphen at which a line may break.
_MINUS = "\N{MINUS SIGN}"


def number(value: int) -> str:
    """Write a whole number with its thousands grouped."""
    return f"{value:,}".replace("-", _MINUS)


def money(nano: int, currency: str) -> str:
    """Write an amount exactly, with two places or as many as it has."""
    whole, fraction = divmod(abs(nano), NANO)
    places = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    sign = _MINUS if nano < 0 else ""
    amount = f"{whole:,}.{places}"
    if currency in _SIGNS:
        return f"{sign}{_SIGNS[currency]}{amount}"
    return f"{sign}{amount}\N{NO-BREAK SPACE}{currency}"


def duration(seconds: float, units: Sequence[str]) -> str:
    """Write a time, rounded up, in one of the units for second, minute, hour and day."""
    place = next(place for place, (below, _) in enumerate(_STEPS) if seconds < below)
    return f"{math.ceil(round(seconds / _STEPS[place][1], 6)):,}{units[place]}"
