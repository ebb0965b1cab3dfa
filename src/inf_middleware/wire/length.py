"""How long a content is said to be."""

# More than any content has in bytes. Python converts no number of thousands of digits.
_DIGITS_MAX = 19


def length_of(declared: bytes) -> int | None:
    """Return the number of a `content-length`; None where it is none, or none that can be meant.

    Source: RFC 9110, section 8.6, which warns of numbers that do not fit.
    """
    return int(declared) if declared.isdigit() and len(declared) <= _DIGITS_MAX else None
