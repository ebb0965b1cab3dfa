"""The start of an answer: what its headers tell of how to read the rest, and which of them stay."""

from collections.abc import Iterable, Sequence

from inf_middleware.wire.answers import LIMIT_NAMES, Header
from inf_middleware.wire.length import length_of

# The name of the request, where the app has given it one.
NAME = b"x-request-id"

_TYPE, _CODING, _LENGTH = b"content-type", b"content-encoding", b"content-length"
_TELLING = {name: name for name in (_TYPE, _CODING, _LENGTH, NAME, *LIMIT_NAMES)}


def read_headers(headers: Iterable[Header]) -> tuple[bytes, bytes, int | None, bool]:
    """Return type, coding in lower case, and length; whether any header is named as one of ours."""
    content_type = coding = b""
    length: int | None = None
    is_shared = False
    for name, value in headers:
        told = _TELLING.get(name) or _TELLING.get(name.lower())
        if told is None:
            continue
        if told is _TYPE:
            content_type = value
        elif told is _LENGTH:
            length = length_of(value)
        elif told is _CODING:
            coding = value.strip().lower()
        else:
            is_shared = True
    return content_type, coding, length, is_shared


def with_ours(headers: Sequence[Header], ours: Sequence[Header]) -> list[Header]:
    """Return the app's headers with ours, where some of both have one name.

    The app's own name for the request stays. What it says of limits does not where we say it: those
    are of others, such as the operator's own at an API behind it.
    """
    limits = LIMIT_NAMES.intersection(name for name, _ in ours)
    kept = [header for header in headers if header[0].lower() not in limits]
    there = {(name.lower(), value) for name, value in kept}
    is_named = any(name == NAME for name, _ in there)
    # `request-id` is ours, and there already in a refusal of ours from further in.
    return kept + [
        header for header in ours if not (is_named and header[0] == NAME) and header not in there
    ]
