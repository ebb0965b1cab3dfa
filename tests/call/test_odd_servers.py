"""What real model servers were seen to do at the end of a stream, each metered as it is meant."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.apps import StreamApp, delta, event, read_all
from tests.call.test_dialect_calls import serve
from tests.driver import post
from tests.kit import STREAM, House

TWO_WORDS = [event(delta("two")), event(delta(" words"))]


@pytest.mark.parametrize(
    ("failure", "server"),
    [
        (b'data: {"error": "the engine "failed""}\n\n', "transformers: a string, not escaped"),
        (b'data: {"error": {"message": "no"}}\n', "LitServe: without the final blank line"),
        (b'data: {"error": {"message": "no"}}', "LitServe: without any line end"),
        (b'data: {"error": {"message": "no", "code": 500}}\n\ndata: [DONE]\n\n', "vLLM: then DONE"),
        (b'event: error\ndata: {"message": "no"}\n\n', "by the name of the event"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_error_in_the_middle_is_one_in_each_servers_form(
    failure: bytes, server: str, tmp_path: Path
) -> None:
    house = House(StreamApp([*TWO_WORDS, failure]), tmp_path, include_usage=False)
    answered = serve(house, STREAM)
    assert answered.body == b"".join([*TWO_WORDS, failure])
    assert (house.record["outcome"], house.record["output_tokens"]) == ("upstream_error", 2)


def test_a_failed_answer_labelled_a_stream_costs_nothing(tmp_path: Path) -> None:
    body = event({"error": {"message": "no"}})

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 500, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    house = House(app, tmp_path)
    answered = serve(house, STREAM)
    assert (answered.status, answered.body) == (500, body)
    assert (house.record["amount_nano"], house.record["outcome"]) == (0, "upstream_error")


@pytest.mark.parametrize("last", [[], [event("[DONE]")]], ids=["cut", "after DONE"])
def test_an_app_that_returns_without_the_end_of_its_body_is_billed_once_for_what_it_sent(
    last: list[bytes], tmp_path: Path
) -> None:
    house = House(StreamApp([*TWO_WORDS, *last], closes=False), tmp_path, include_usage=False)
    answered = serve(house, STREAM)
    assert answered.body == b"".join([*TWO_WORDS, *last])
    assert house.record["output_tokens"] == 2
    assert house.record["outcome"] == ("complete" if last else "upstream_error")
    assert house.in_progress("umbrella") == 0


def test_a_clean_end_after_the_client_left_is_not_complete(tmp_path: Path) -> None:
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": TWO_WORDS[0], "more_body": True})
        assert (await receive())["type"] == "http.disconnect"
        left.set()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    house = House(app, tmp_path)

    async def go() -> None:
        await post(house.app, STREAM, key="sk-five", leave_after=1)
        await house.close()

    asyncio.run(go())
    assert left.is_set()
    record = house.record
    assert (record["outcome"], record["output_tokens"]) == ("client_disconnect", 1)
    assert record["basis"] == "counted"


def test_each_event_may_carry_another_id(tmp_path: Path) -> None:
    events = [event({**delta(word), "id": f"chatcmpl-{word}"}) for word in ("two", " words")]
    house = House(StreamApp([*events, event("[DONE]")]), tmp_path, include_usage=False)
    serve(house, STREAM)
    assert house.record["output_tokens"] == 2
    assert house.record["response_id"] == "chatcmpl-two"


def test_usage_in_the_last_event_beside_its_choice_reaches_a_client_that_did_not_ask(
    tmp_path: Path,
) -> None:
    """Not only what we asked for: transformers and LitServe always send it so."""
    usage = {"prompt_tokens": 15, "completion_tokens": 12, "total_tokens": 27}
    last = event({**delta("", finish="stop"), "usage": usage})
    house = House(StreamApp([*TWO_WORDS, last]), tmp_path)
    answered = serve(house, STREAM)
    assert json.loads(answered.body.split(b"data: ")[-1])["usage"] == usage
    assert (house.record["input_tokens"], house.record["output_tokens"]) == (15, 12)
