"""Promise 6: the client gets the very bytes of the model server, less only what we asked for."""

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inf_middleware.wire.answers import LIMIT_NAMES
from tests.apps import (
    Asking,
    JsonApp,
    StreamApp,
    completion,
    delta,
    event,
    usage_chunk,
    usage_of,
)
from tests.driver import Answered, post
from tests.kit import CHAT, ORDER_IDS, ORDERS, STREAM, House

ASKING = {**STREAM, "stream_options": {"include_usage": True}}


def ask(house: House, body: Any, **more: Any) -> Answered:
    async def go() -> Answered:
        answered = await post(house.app, body, key="sk-five", **more)
        await house.close()
        return answered

    return asyncio.run(go())


@pytest.mark.parametrize("order", ORDERS, ids=ORDER_IDS)
def test_a_json_answer_goes_out_as_it_came(order: Any, tmp_path: Path) -> None:
    app = JsonApp(b'\n\n { "id":"x" ,"usage":{"prompt_tokens":3,"completion_tokens":4}}')
    house = House(app, tmp_path, order=order)
    answered = ask(house, CHAT)
    assert answered.bodies == [app.answer]
    assert answered.header_list[:2] == [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(app.answer)).encode()),
    ]
    assert (house.record["input_tokens"], house.record["output_tokens"]) == (3, 4)


def test_the_app_sees_the_very_bytes_of_a_request_that_is_not_rewritten(tmp_path: Path) -> None:
    app = JsonApp(completion(usage=usage_of(1, 1)))
    body = b'{"model" : "inf-chat-v1",\n "temperature": 1.0e0, "messages":[ ]}'
    ask(House(app, tmp_path), body, pieces=[body[:5], body[5:20], b"", body[20:]])
    assert app.bodies == [body]


def test_a_stream_is_asked_for_usage_and_the_extra_event_is_hidden(tmp_path: Path) -> None:
    app = Asking(["Hel", "lo"])
    house = House(app, tmp_path)
    answered = ask(house, {**STREAM, "temperature": 0.5})
    assert json.loads(app.bodies[0]) == {
        **STREAM,
        "temperature": 0.5,
        "stream_options": {"include_usage": True},
    }
    assert answered.body == b"".join(app.frames(asked=False))
    assert answered.bodies == [*app.frames(asked=False), b""]
    assert house.record["basis"] == "reported"
    assert (house.record["input_tokens"], house.record["output_tokens"]) == (7, 2)


def test_a_client_that_asks_for_usage_gets_it(tmp_path: Path) -> None:
    app = Asking(["Hel", "lo"])
    answered = ask(House(app, tmp_path), ASKING)
    assert json.loads(app.bodies[0]) == ASKING
    assert answered.bodies == [*app.frames(asked=True), b""]


def test_streams_are_not_asked_where_the_operator_says_so(tmp_path: Path) -> None:
    app = Asking(["Hel", "lo"])
    house = House(app, tmp_path, include_usage=False)
    ask(house, STREAM)
    assert json.loads(app.bodies[0]) == STREAM
    assert house.record["basis"] == "counted"


def test_malformed_stream_options_are_left_for_the_server_to_refuse(tmp_path: Path) -> None:
    app = JsonApp({"error": {"message": "no"}}, status=400)
    body = {**STREAM, "stream_options": "yes"}
    answered = ask(House(app, tmp_path), body)
    assert json.loads(app.bodies[0]) == body
    assert answered.status == 400


def test_usage_together_with_choices_is_not_hidden(tmp_path: Path) -> None:
    last = {**delta("", finish="stop"), "usage": usage_of(5, 2)}
    app = StreamApp([event(delta("Hi")), event(last)])
    house = House(app, tmp_path)
    answered = ask(house, STREAM)
    assert answered.bodies == app.messages
    assert house.record["output_tokens"] == 2


def test_an_event_with_empty_choices_and_no_usage_is_not_hidden(tmp_path: Path) -> None:
    other = event({"choices": [], "sglext": {"a": 1}})
    app = StreamApp([event(delta("Hi")), other, event(usage_chunk(5, 2)), event("[DONE]")])
    answered = ask(House(app, tmp_path), STREAM)
    assert answered.bodies == [app.pieces[0], other, event("[DONE]"), b""]


PIECES = [
    b": ping\r\n\r\n",
    event(delta("He said: \u201c\u4f60\u597d\u201d \U0001f600")),
    b'event: message\r\ndata: {"choices":[{"index":0,\r\ndata: "delta":{"content":"x"}}]}\r\n\r\n',
    event(delta("", finish="stop")),
]
USAGE = event(usage_chunk(11, 13))
DONE = event("[DONE]")


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 900), max_size=12), asks=st.booleans())
def test_any_cut_of_a_stream_gives_the_same_bytes_and_the_same_bill(
    cuts: list[int], asks: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    whole = b"".join([*PIECES, USAGE, DONE])
    edges = sorted({0, len(whole), *(min(cut, len(whole)) for cut in cuts)})
    app = StreamApp([whole[a:b] for a, b in itertools.pairwise(edges)])
    house = House(app, tmp_path_factory.mktemp("cut"))
    answered = ask(house, ASKING if asks else STREAM)
    expected = whole if asks else b"".join([*PIECES, DONE])
    assert answered.body == expected
    if asks:
        assert answered.bodies == app.messages
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (11, 13)
    assert record["outcome"] == "complete"


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.binary(max_size=60), max_size=6), stream=st.booleans())
def test_arbitrary_bytes_from_the_app_are_passed_on_and_make_one_record(
    pieces: list[bytes], stream: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    app = StreamApp(pieces)
    house = House(app, tmp_path_factory.mktemp("any"), include_usage=False)
    answered = ask(house, STREAM if stream else CHAT)
    assert answered.bodies == app.messages
    assert len(house.records) == 1


def test_headers_are_added_and_others_kept(tmp_path: Path) -> None:
    house = House(JsonApp(completion(usage=usage_of(3, 4))), tmp_path)
    answered = ask(house, CHAT)
    headers = answered.headers
    assert headers["x-request-id"] == headers["request-id"] == house.record["request_id"]
    assert headers["x-ratelimit-limit-requests"] == "480"
    assert headers["x-ratelimit-remaining-requests"] == "479"
    assert headers["x-ratelimit-limit-tokens"] == "768000"
    assert headers["x-ratelimit-limit-concurrency"] == "48"
    assert headers["x-ratelimit-remaining-concurrency"] == "47"
    assert "x-ratelimit-reset-concurrency" not in headers
    assert headers["x-ratelimit-reset-requests"] == "1m0s"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_limits_that_an_app_tells_of_are_not_told_beside_those_of_the_caller(
    path: str, tmp_path: Path
) -> None:
    """As of the operator's own account at an API behind a proxy."""
    its_own = [(b"x-request-id", b"app"), (b"x-ratelimit-limit-project-tokens", b"app")]
    of_limits = [(name.title(), b"app") for name in LIMIT_NAMES]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [*its_own, *of_limits]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    told = ask(House(app, tmp_path), CHAT, path=path).header_list
    names = [name.lower() for name, _ in told]
    assert len(names) == len(set(names))
    by_the_app = {name.lower() for name, value in told if value == b"app"}
    of_anthropic = {name for name in LIMIT_NAMES if name.startswith(b"anthropic-")}
    assert by_the_app == {name for name, _ in its_own} | (
        set() if path == "/v1/messages" else of_anthropic
    )
    assert {name for name in names if b"ratelimit" in name} == LIMIT_NAMES | {its_own[1][0]}


def test_unknown_messages_pass_untouched(tmp_path: Path) -> None:
    trailers = {"type": "http.response.trailers", "headers": [(b"a", b"b")], "more_trailers": False}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.debug", "info": {"x": 1}})
        await send({"type": "http.response.start", "status": 200, "headers": [], "trailers": True})
        await send({"type": "http.response.body", "body": memoryview(b"{}"), "more_body": False})
        await send(trailers)

    answered = ask(House(app, tmp_path), CHAT)
    kinds = [message["type"].rpartition(".")[2] for message in answered.messages]
    assert kinds == ["debug", "start", "body", "trailers"]
    assert answered.messages[1]["trailers"] is True
    assert answered.messages[3] == trailers


def test_each_event_leaves_before_the_next_is_made(tmp_path: Path) -> None:
    left: list[bytes] = []
    seen_by_client: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(5):
            seen_by_client.append(len(left))
            piece = event(delta(str(number)))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": DONE, "more_body": False})

    async def on_message(message: Any) -> None:
        if message["type"] == "http.response.body":
            left.append(message["body"])

    ask(House(app, tmp_path), STREAM, on_message=on_message)
    assert seen_by_client == [0, 1, 2, 3, 4]
