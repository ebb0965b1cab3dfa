"""Request ids: UUID version 7, so that they sort by time and never come from a client."""

import os

_VERSION = 0x7 << 76
_VARIANT = 0x2 << 62


def uuid7(now_ns: int) -> str:
    """Make a UUIDv7 for a moment given in nanoseconds since the Unix epoch.

    Source: RFC 9562, section 5.7; sub-millisecond fraction in rand_a by section 6.2, method 3.
    """
    ms, below = divmod(now_ns, 1_000_000)
    fraction = (below << 12) // 1_000_000
    random = int.from_bytes(os.urandom(8), "big") >> 2
    text = f"{(ms & (1 << 48) - 1) << 80 | _VERSION | fraction << 64 | _VARIANT | random:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
