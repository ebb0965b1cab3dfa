"""URIs as they may be shown."""

import re

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+")


def masked(uri: str) -> str:
    """Return a URI without user and password, also one that is not quite one.

    They go to the last "@", for who writes one into a password as it is, or forgets a slash.
    """
    before, at, place = uri.rpartition("@")
    if not at or ":" not in before:
        return uri
    scheme = _SCHEME.match(before)
    return f"{scheme[0] if scheme else ''}…@{place}"
