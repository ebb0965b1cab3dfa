"""Request ids: UUID version 7, so that they sort by time and never come from a client."""

import os
from functools import lru_cache

# Asked of the system for so many ids at a time: to ask costs a hundred times as much as the rest.
_IDS_PER_DRAW = 256
_drawn: list[str] = []

if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(after_in_child=_drawn.clear)  # the parent gives its own away

# The first byte of what is random begins with the variant.
_with_variant = bytes(0x80 | byte & 0x3F for byte in range(256))


# The version, and what follows it: the fraction of a millisecond in its 4096ths.
_fractions = tuple(f"-7{fraction:03x}-" for fraction in range(4096))


def _draw() -> str:
    drawn = bytearray(os.urandom(8 * _IDS_PER_DRAW))
    drawn[::8] = drawn[::8].translate(_with_variant)
    first, *more = [drawn[at : at + 8].hex("-", 6) for at in range(0, len(drawn), 8)]
    _drawn.extend(more)
    return first


def uuid7(now_ns: int) -> str:
    """Make a UUIDv7 for a moment given in nanoseconds since the Unix epoch.

    Source: RFC 9562, section 5.7; sub-millisecond fraction in rand_a by section 6.2, method 3.
    """
    ms, below = divmod(now_ns, 1_000_000)
    try:
        random = _drawn.pop()  # one step: of several threads each gets another
    except IndexError:
        random = _draw()
    return _millisecond(ms) + _fractions[(below << 12) // 1_000_000] + random


@lru_cache(maxsize=16)  # those of a busy process are a few at a time
def _millisecond(ms: int) -> str:
    text = f"{ms & (1 << 48) - 1:012x}"
    return f"{text[:8]}-{text[8:]}"
