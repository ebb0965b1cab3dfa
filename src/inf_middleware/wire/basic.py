"""Keys by HTTP Basic (RFC 7617), the one way in which a browser asks for a key without a script."""

import base64
import binascii
from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]

_AUTHORIZATION = b"authorization"


def with_bearer(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return headers with a key that was sent as a password as the bearer's; others as they are.

    The user's name does not matter; without a password it is taken for the key. What is not to be
    read stays, as a bearer's key that is malformed.
    """
    return [
        (name, _as_bearer(value)) if name == _AUTHORIZATION else (name, value)
        for name, value in headers
    ]


def _as_bearer(value: bytes) -> bytes:
    scheme, _, credentials = value.partition(b" ")
    if scheme.lower() != b"basic":
        return value
    try:
        sent = base64.b64decode(credentials.strip(), validate=True)
    except (binascii.Error, ValueError):
        return b"Bearer \0"  # no key has that sign: it is refused as malformed, and counted
    user, _, password = sent.partition(b":")
    return b"Bearer " + (password or user)
