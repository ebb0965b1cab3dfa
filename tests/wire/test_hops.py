"""Headers from one hop to the next."""

from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.wire.hops import HOP_BY_HOP, request_headers, response_headers, with_key

NAMES = st.sampled_from(
    [*HOP_BY_HOP, b"x-a", b"X-B", b"content-type", b"content-length", b"Host", b"via", b"cookie"]
)
HEADERS = st.lists(st.tuples(NAMES, st.sampled_from([b"x-a", b"close, X-B", b"1", b"", b","])))


def sent(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return request_headers(
        headers, host=b"up:1", scheme="https", client="192.0.2.1", pseudonym=b"me"
    )


@given(HEADERS)
def test_nothing_of_a_hop_leaves_it_and_nothing_else_is_lost(
    headers: list[tuple[bytes, bytes]],
) -> None:
    named = {
        one.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for one in value.split(b",")
    }
    gone = (HOP_BY_HOP | named) - {b"content-length"}
    for out in (sent(headers), response_headers(headers, 200)):
        assert not gone & {name for name, _ in out}
        for name in (b"x-a", b"x-b", b"content-type", b"cookie"):
            if name not in gone:
                kept = [value for key, value in headers if key.lower() == name]
                assert [value for key, value in out if key == name] == kept


@given(HEADERS)
def test_host_and_via_are_said_once(headers: list[tuple[bytes, bytes]]) -> None:
    out = sent(headers)
    assert [value for name, value in out if name == b"host"] == [b"up:1"]
    (via,) = [value for name, value in out if name == b"via"]
    assert via.endswith(b"1.1 me")


def test_chunked_beats_a_length() -> None:
    both = [(b"content-length", b"5"), (b"transfer-encoding", b"chunked")]
    assert b"content-length" not in dict(sent(both))
    assert dict(sent(both[:1]))[b"content-length"] == b"5"


def test_connection_cannot_take_the_length_away() -> None:
    headers = [(b"connection", b"content-length"), (b"content-length", b"5")]
    assert (b"content-length", b"5") in sent(headers)


def test_what_nearer_proxies_said_of_the_caller_stays() -> None:
    out = dict(sent([(b"x-forwarded-proto", b"http"), (b"x-forwarded-host", b"edge")]))
    assert (out[b"x-forwarded-proto"], out[b"x-forwarded-host"]) == (b"http", b"edge")


def test_the_upstreams_key_stands_where_the_callers_stood() -> None:
    assert with_key([(b"x-api-key", b"sk-caller")], "up") == [(b"x-api-key", b"up")]
    assert with_key([(b"authorization", b"Bearer sk")], "up") == [(b"authorization", b"Bearer up")]
    assert with_key([], "up") == [(b"authorization", b"Bearer up")]
    both = with_key([(b"api-key", b"sk"), (b"authorization", b"Bearer sk")], "up")
    assert not any(b"sk" in value for _, value in both)
