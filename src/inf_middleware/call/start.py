"""The start of an answer: what its headers tell of how to read the rest."""

from collections.abc import Iterable

from inf_middleware.wire.length import length_of

# The name of the request, where the app has given it one.
NAME = b"x-request-id"

_TYPE, _CODING, _LENGTH = b"content-type", b"content-encoding", b"content-length"
_TELLING = {name: name for name in (_TYPE, _CODING, _LENGTH, NAME)}


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes, int | None, bool]:
    """Return type, coding in lower case, and length of the content; whether the app names it."""
    content_type = coding = b""
    length: int | None = None
    is_named = False
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
            is_named = True
    return content_type, coding, length, is_named
