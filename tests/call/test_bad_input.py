"""Bad input gets a clear 4xx or passes metered: never a 500 of ours, never unmetered."""

import asyncio
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.apps import JsonApp, completion, read_all, usage_of
from tests.driver import Answered, post
from tests.kit import CHAT, House


class Lax:
    """A model server as lax as Starlette's `request.json()`; it answers what it could read."""

    def __init__(self) -> None:
        self.served: list[Any] = []
        self.app = Starlette(
            routes=[Route("/{path:path}", self.chat, methods=["POST"])],
        )

    async def chat(self, request: Request) -> Response:
        try:
            asked = await request.json()
        except (ValueError, RecursionError):
            return JSONResponse({"error": {"message": "not JSON"}}, 400)
        if not isinstance(asked, dict):
            return JSONResponse({"error": {"message": "not an object"}}, 400)
        self.served.append(asked)
        return JSONResponse(completion(usage=usage_of(9, 2)))


def ask(house: House, body: bytes | dict[str, Any], **more: Any) -> Answered:
    async def go() -> Answered:
        try:
            return await post(house.app, body, key="sk-five", **more)
        finally:
            await house.close()

    return asyncio.run(go())


TEXT = json.dumps(CHAT)

METERED = {
    "BOM": b"\xef\xbb\xbf" + TEXT.encode(),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-32": TEXT.encode("utf-32"),
    "NaN": TEXT[:-1].encode() + b', "temperature": NaN}',
    "lone surrogate": TEXT[:-1].encode() + b', "user": "\\ud800"}',
    "max_tokens a string": {**CHAT, "max_tokens": "5"},
    "max_tokens -1": {**CHAT, "max_tokens": -1},
    "max_tokens 0": {**CHAT, "max_tokens": 0},
    "max_tokens 10^18": {**CHAT, "max_tokens": 10**18, "model": "of-any-context"},
    "max_tokens 10^400": TEXT[:-1].replace("inf-chat-v1", "of-any-context").encode()
    + b', "max_tokens": 1'
    + b"0" * 400
    + b"}",
    "max_tokens 1e400": TEXT[:-1].encode() + b', "max_tokens": 1e400}',
    "max_tokens a list": {**CHAT, "max_tokens": [5]},
    "n 10^9": {**CHAT, "n": 10**9},
    "n -1": {**CHAT, "n": -1},
    "n a string": {**CHAT, "n": "2"},
    "stream 1": {**CHAT, "stream": 1},
    "stream null": {**CHAT, "stream": None},
    "no model": {"messages": CHAT["messages"]},
    "model a number": {**CHAT, "model": 5},
    "no messages": {"model": "inf-chat-v1"},
    "messages a string": {**CHAT, "messages": "hello"},
    "messages of odd things": {**CHAT, "messages": [None, 1, "x", {"role": 5, "content": {}}]},
    "content of odd parts": {
        **CHAT,
        "messages": [{"role": "user", "content": [None, {"type": "text"}, {"type": 5}, "x"]}],
    },
    "end of text": {**CHAT, "messages": [{"role": "user", "content": "<|endoftext|>" * 50}]},
    "surrogates in the content": TEXT[:-1].encode()
    + b', "messages": [{"role": "user", "content": "\\udfff\\ud83d"}]}',
    "a model of surrogates": TEXT[:-1].encode() + b', "model": "a\\ud800b"}',
    "a key twice": TEXT[:-1].encode() + b', "model": "inf-chat-fin-v1"}',
    "blank lines before": b"\n\n  " + TEXT.encode() + b"\n",
}


@pytest.mark.parametrize("body", METERED.values(), ids=METERED.keys())
def test_what_a_lax_server_accepts_is_metered(body: Any, tmp_path: Path) -> None:
    lax = Lax()
    house = House(lax.app, tmp_path)
    answered = ask(house, body)
    assert answered.status == 200, answered.body
    assert len(lax.served) == 1
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (9, 2)
    model = lax.served[0].get("model")
    known = model.encode("utf-8", "replace").decode() if isinstance(model, str) else None
    assert record["model"] == known


REFUSED = {
    "not JSON": b"hello",
    "truncated": TEXT.encode()[:-4],
    "empty": b"",
    "blank": b"  \n",
    "a list": b"[]",
    "a string": b'"hello"',
    "null": b"null",
    "not UTF-8": b'{"model": "\xff\xfe"}',
    "deep": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "a model of 300 characters": {**CHAT, "model": "m" * 300},
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_meant_is_a_clear_400_that_reaches_nobody(body: Any, tmp_path: Path) -> None:
    lax = Lax()
    house = House(lax.app, tmp_path)
    answered = ask(house, body)
    assert answered.status == 400, answered.body
    error = answered.json["error"]
    assert error["code"] == "invalid_request_body"
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) > 20
    assert answered.headers["x-should-retry"] == "false"
    assert lax.served == house.records == []


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "undeclared"])
def test_a_body_over_8_mib_is_a_413(declared: bool, tmp_path: Path) -> None:
    house = House(JsonApp(completion()), tmp_path)
    big = b'{"messages": "' + b"x" * (8 * 1024 * 1024) + b'"}'
    half = len(big) // 2
    headers = [] if declared else [("transfer-encoding", "chunked")]
    answered = ask(house, big, pieces=[big[:half], big[half:]], headers=headers)
    assert (answered.status, answered.json["error"]["code"]) == (413, "request_too_large")
    assert "8,388,608 bytes" in answered.json["error"]["message"]
    assert house.records == []


def test_a_body_just_under_the_bound_passes_metered(tmp_path: Path) -> None:
    lax = Lax()
    house = House(lax.app, tmp_path)
    body = {**CHAT, "padding": "x" * (8 * 1024 * 1024 - 1_000)}
    assert ask(house, body).status == 200
    assert house.record["input_tokens"] == 9


def test_a_compressed_body_is_refused_in_words(tmp_path: Path) -> None:
    house = House(Lax().app, tmp_path)
    headers = [("content-encoding", "gzip")]
    answered = ask(house, zlib.compress(TEXT.encode(), wbits=31), headers=headers)
    assert answered.status == 400
    assert "content-encoding" in answered.json["error"]["message"]


def test_a_client_that_leaves_before_its_body_is_whole_makes_no_call(tmp_path: Path) -> None:
    app = JsonApp(completion())
    house = House(app, tmp_path)

    async def go() -> list[Any]:
        sent: list[Any] = []
        messages = [
            {"type": "http.request", "body": b'{"mod', "more_body": True},
            {"type": "http.disconnect"},
        ]

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        from tests.driver import scope_of

        await house.app(scope_of(key="sk-five"), receive, send)
        await house.close()
        return sent

    assert asyncio.run(go()) == []
    assert app.bodies == house.records == []


def test_an_unknown_post_is_metered_by_the_usage_in_its_answer(tmp_path: Path) -> None:
    answer = {"model": "e", "data": [], "usage": {"prompt_tokens": 12, "total_tokens": 12}}
    house = House(JsonApp(answer), tmp_path)
    body = {"model": "inf-chat-v1", "input": "some words"}
    assert ask(house, body, path="/v1/embeddings").status == 200
    record = house.record
    assert (record["endpoint"], record["model"]) == ("/v1/embeddings", "inf-chat-v1")
    assert (record["input_tokens"], record["output_tokens"]) == (12, 0)
    assert record["amount_nano"] == 120_000


def test_a_post_with_nothing_to_count_is_recorded_and_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(JsonApp({"ok": True}), tmp_path)
    headers = [("content-type", "multipart/form-data; boundary=x")]
    assert ask(house, b"--x--", path="/v1/files", headers=headers).status == 200
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (0, 0)
    assert record["basis"] == "estimated"
    assert any("tell no usage" in line.getMessage() for line in caplog.records)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                [
                    "model",
                    "messages",
                    "stream",
                    "n",
                    "max_tokens",
                    "content",
                    "role",
                    "type",
                    "tools",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.one_of(st.binary(max_size=200), JSON.map(lambda value: json.dumps(value).encode())))
def test_no_body_whatever_is_a_500_of_ours_or_unmetered(
    body: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lax = Lax()
    house = House(lax.app, tmp_path_factory.mktemp("any"))
    answered = ask(house, body)
    assert answered.status in (200, 400)
    assert len(house.records) >= len(lax.served)
    if answered.status == 200:
        assert len(house.records) == len(lax.served) == 1


LENGTHS = {"5,000 digits": "9" * 5_000, "zeros before": "0" * 5_000 + "5", "words": "plenty"}


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_a_length_that_cannot_be_meant_is_as_none_of_a_request(length: str, tmp_path: Path) -> None:
    house = House(JsonApp(completion(usage=usage_of(9, 2))), tmp_path)
    answered = ask(house, CHAT, headers=[("content-length", length)])
    assert answered.status == 200
    assert house.record["input_tokens"] == 9


@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS)
def test_a_length_that_cannot_be_meant_is_as_none_of_an_answer(length: str, tmp_path: Path) -> None:
    whole = json.dumps(completion(usage=usage_of(9, 2))).encode()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        headers = [(b"content-type", b"application/json"), (b"content-length", length.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": whole})

    house = House(app, tmp_path)
    assert ask(house, CHAT).body == whole
    assert house.record["input_tokens"] == 9
