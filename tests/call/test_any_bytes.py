"""Whatever is sent by either side: no exception, no 500, no byte changed, nothing unmetered."""

import asyncio
import itertools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.apps import JsonApp, completion, usage_of
from tests.domain.test_event_schema import faults
from tests.driver import Answered, post
from tests.kit import CHAT, House
from tests.wire.fixtures import EXCHANGES, Exchange

ANY = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


class Sends:
    """A server that answers with given headers and pieces, whatever it is asked."""

    def __init__(self, headers: list[tuple[bytes, bytes]], pieces: list[bytes]) -> None:
        self.headers = headers
        self.pieces = pieces

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def ask(house: House, body: bytes | dict[str, Any], **scope: Any) -> Answered:
    async def go() -> Answered:
        try:
            return await post(house.app, body, **scope)
        finally:
            await house.close()

    return asyncio.run(go())


@st.composite
def mutated(draw: st.DrawFn, of: bytes) -> bytes:
    """Bytes, some of which were overwritten, left out, repeated or put in."""
    data = of
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(start + 40, len(data))))
        put = draw(
            st.binary(max_size=4)
            | st.just(data[start:end] * 2)
            | st.sampled_from([b"null", b"-1", b"1e400", b'"\\ud800"', b"\r", b"\n\n", b"[]", b"{"])
        )
        data = data[:start] + put + data[end:]
    return data


@st.composite
def answers(draw: st.DrawFn) -> tuple[Exchange, bool, bytes, list[int]]:
    exchange = draw(st.sampled_from(EXCHANGES))
    streamed = bool(exchange.stream) and draw(st.booleans())
    whole = exchange.stream if streamed else json.dumps(exchange.answer).encode()
    data = draw(mutated(whole) | st.binary(max_size=300))
    return exchange, streamed, data, draw(st.lists(st.integers(0, len(data)), max_size=6))


@ANY
@given(answer=answers())
def test_no_answer_whatever_is_changed_lost_or_unmetered(
    answer: tuple[Exchange, bool, bytes, list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    exchange, streamed, data, cuts = answer
    pieces = [data[a:b] for a, b in itertools.pairwise(sorted({0, *cuts, len(data)}))]
    media = exchange.media if streamed else "application/json"
    app = Sends([(b"content-type", media.encode())], pieces)
    # What was asked for by the client itself is not taken out.
    house = House(app, tmp_path_factory.mktemp("any"), include_usage=False)
    body = {**exchange.request, "model": "inf-chat-v1", "stream": streamed}
    answered = ask(house, body, key="sk-five", path=exchange.path)
    assert answered.status == 200
    assert answered.body == data
    (event,) = house.events
    assert faults(event.encode()) == []
    assert len(house.records) == 1
    assert house.in_progress("umbrella") == 0


# As servers hand them over: names in lower case, no line end in a value.
NAMES = st.sampled_from(
    [
        "authorization",
        "x-api-key",
        "api-key",
        "idempotency-key",
        "content-length",
        "content-encoding",
        "content-type",
        "transfer-encoding",
        "x-forwarded-for",
        "forwarded",
        "x-real-ip",
        "x-request-id",
        "traceparent",
        "expect",
        "accept-encoding",
    ]
) | st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=12)
VALUES = st.binary(max_size=40).map(lambda raw: raw.translate(None, b"\r\n\0").strip()) | (
    st.sampled_from(
        [
            b"Bearer",
            b"Bearer ",
            b"Bearer sk-five",
            b"bearer  sk-five",
            b"Basic OjpzaWZ",
            b"-1",
            b"9" * 400,
            b"1e3",
            b"\xb2",
            b"for=[::1]:x",
            b"::ffff:1.2.3.4, ,",
            b"identity",
        ]
    )
)


@ANY
@given(headers=st.lists(st.tuples(NAMES, VALUES), max_size=6), accounts=st.booleans())
def test_no_header_of_a_request_whatever_is_a_500_or_unmetered(
    headers: list[tuple[str, bytes]], accounts: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    app = JsonApp(completion(usage=usage_of(3, 2)))
    options: dict[str, Any] = {} if accounts else {"accounts": None}
    house = House(app, tmp_path_factory.mktemp("any"), trusted_proxies=["127.0.0.1"], **options)
    given = [(name, value.decode("latin-1")) for name, value in headers]

    async def through(scope: Any, receive: Any, send: Any) -> None:
        raw = [(name.encode(), value.encode("latin-1")) for name, value in given]
        await house.app({**scope, "headers": [*scope["headers"], *raw]}, receive, send)

    async def go() -> Answered:
        try:
            return await post(through, CHAT)
        finally:
            await house.close()

    answered = asyncio.run(go())
    assert answered.status in (200, 400, 401, 413), answered.body
    assert len(app.bodies) == len(house.records) == (1 if answered.status == 200 else 0)
    if answered.status != 200:
        assert len(answered.json["error"]["message"]) > 20


@ANY
@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                ["content-type", "content-encoding", "content-length", "x-request-id", "date"]
            ).map(str.encode),
            VALUES
            | st.sampled_from(
                [b"text/event-stream", b"application/json;charset=x", b"gzip", b"br", b"zstd", b"0"]
            ),
        ),
        max_size=4,
    ),
    body=st.binary(max_size=60) | st.just(json.dumps(completion(usage=usage_of(3, 2))).encode()),
)
def test_no_header_of_an_answer_whatever_changes_its_bytes_or_leaves_it_unmetered(
    headers: list[tuple[bytes, bytes]], body: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    house = House(Sends(headers, [body]), tmp_path_factory.mktemp("any"))
    answered = ask(house, CHAT, key="sk-five")
    assert answered.status == 200
    assert answered.body == body
    assert len(house.records) == len(house.events) == 1
