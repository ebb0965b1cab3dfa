"""URIs as they may be shown, and patterns of paths."""

import re
from collections.abc import Iterable

from inf_middleware.domain.errors import ConfigError

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


def check_patterns(name: str, patterns: Iterable[str]) -> None:
    """See that paths can be like each of some patterns.

    Raises:
        ConfigError: One begins as no path does.
    """
    for pattern in patterns:
        if not pattern.startswith(("/", "*")):
            raise ConfigError(f'{name} has {pattern!r}, which no path is like; write "/{pattern}"')
