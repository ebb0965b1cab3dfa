"""URIs as they may be shown, and patterns of paths."""

import re
from collections.abc import Iterable

from inf_middleware.domain.errors import ConfigError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/+")
_IS_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

# What may stand between a scheme and a query: user and password, hosts with their ports, a path.
_HOST = r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])(?::\d+)?"
_PLACE = re.compile(rf"(?:[^/]*@)?{_HOST}(?:,{_HOST})*(?:/.*)?")
_QUERY = re.compile(r"[^=&@]+=")


def masked(uri: str) -> str:
    """Return a URI without user and password and without its query, also one that is not quite one.

    User and password go to the last "@", for who writes one into a password as it is, or forgets a
    slash. Where it is not clear to which of them a text belongs, it is not shown.
    """
    place, mark, query = uri.partition("?")
    if not mark or not _IS_URI.match(uri):
        return _without_password(uri)
    if "@" not in query:
        return _without_password(place) + ("?…" if query else "?")
    found = _SCHEME.match(place)
    scheme = found[0] if found else ""
    is_place = _PLACE.fullmatch(place, len(scheme)) is not None
    if is_place and _QUERY.match(query):
        return f"{_without_password(place)}?…"
    if is_place or "=" in query:
        return f"{scheme}…"
    return _without_password(uri)  # the "?" is one of a password


def _without_password(uri: str) -> str:
    before, at, place = uri.rpartition("@")
    if not at or ":" not in before:
        return uri
    scheme = _SCHEME.match(before)
    return f"{scheme[0] if scheme else ''}…@{place}"


def may_lead_elsewhere(path: str) -> bool:
    """Tell whether a server might take a path for another than the one that is compared."""
    return not {".", ".."}.isdisjoint(path.split("/")) or "\\" in path


def check_patterns(name: str, patterns: Iterable[str]) -> None:
    """See that paths can be like each of some patterns.

    Raises:
        ConfigError: One begins as no path does.
    """
    for pattern in patterns:
        if not pattern.startswith(("/", "*")):
            raise ConfigError(f'{name} has {pattern!r}, which no path is like; write "/{pattern}"')
