"""Keys that a browser sends as passwords."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.wire.basic import with_bearer


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (basic("me:sk-demo"), b"Bearer sk-demo"),
        (basic(":sk-demo"), b"Bearer sk-demo"),
        (basic("sk-demo:"), b"Bearer sk-demo"),
        (basic("sk-demo"), b"Bearer sk-demo"),
        (basic("me:sk:with:colons"), b"Bearer sk:with:colons"),
        (basic("me:schlüssel"), "Bearer schlüssel".encode()),
        (b"bASIC  " + basic("me:k")[6:], b"Bearer k"),
        (b"Basic !!", b"Bearer \0"),
        (b"Basic", b"Bearer "),
        (b"Bearer sk-demo", b"Bearer sk-demo"),
        (b"Digest x", b"Digest x"),
    ],
)
def test_a_password_is_read_as_a_key(sent: bytes, read: bytes) -> None:
    headers = [(b"host", b"h"), (b"authorization", sent), (b"x-api-key", b"other")]
    assert with_bearer(headers) == [
        (b"host", b"h"),
        (b"authorization", read),
        (b"x-api-key", b"other"),
    ]


@given(st.binary(max_size=100))
def test_any_credentials_are_read(credentials: bytes) -> None:
    ((_, value),) = with_bearer([(b"authorization", b"Basic " + credentials)])
    assert value.startswith(b"Bearer ")


@given(st.text(alphabet=st.characters(exclude_characters=":", codec="utf-8")), st.text())
def test_what_is_a_password_is_a_key_whole(user: str, password: str) -> None:
    sent = b"Basic " + base64.b64encode(f"{user}:{password}".encode("utf-8", "replace"))
    ((_, value),) = with_bearer([(b"authorization", sent)])
    wanted = password or user
    assert value == b"Bearer " + wanted.encode("utf-8", "replace")
