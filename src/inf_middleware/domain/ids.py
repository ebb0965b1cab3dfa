"""Request ids: UUID version 7, so that they sort by time and never come from a client."""

import os
from struct import Struct

_VERSION = 0x7 << 76
_VARIANT = 0x2 << 62

# Asked of the system for so many ids at a time: to ask costs a hundred times as much as the rest.
_IDS_PER_DRAW = 256
_numbers = Struct(f"{_IDS_PER_DRAW}Q")
_drawn: list[int] = []

if hasattr(os, "register_at_fork"):  # absent on Windows, which does not fork
    os.register_at_fork(after_in_child=_drawn.clear)  # the parent gives its own away


def _random() -> int:
    while True:
        try:
            return _drawn.pop()  # one step: of several threads each gets another
        except IndexError:
            _drawn.extend(_numbers.unpack(os.urandom(_numbers.size)))


def uuid7(now_ns: int) -> str:
    """Make a UUIDv7 for a moment given in nanoseconds since the Unix epoch.

    Source: RFC 9562, section 5.7; sub-millisecond fraction in rand_a by section 6.2, method 3.
    """
    ms, below = divmod(now_ns, 1_000_000)
    fraction = (below << 12) // 1_000_000
    random = _random() >> 2
    text = f"{(ms & (1 << 48) - 1) << 80 | _VERSION | fraction << 64 | _VARIANT | random:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
