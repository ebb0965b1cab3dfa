"""Any other POST: usage in either vocabulary, wherever it sits."""

import json
from typing import Any

import pytest

from inf_middleware import Usage
from inf_middleware.wire.dialect import Input
from inf_middleware.wire.dialects import Dialects
from inf_middleware.wire.request import Request
from inf_middleware.wire.seen import Seen

UNKNOWN = Dialects().of("/other")


def test_an_anthropic_stream_is_metered_by_its_events() -> None:
    reader = UNKNOWN.answer(Request())
    start = {
        "type": "message_start",
        "message": {
            "id": "msg_1",
            "model": "m",
            "usage": {
                "input_tokens": 10,
                "output_tokens": 1,
                "cache_read_input_tokens": 5,
                "cache_creation_input_tokens": 2,
            },
        },
    }
    stop = {"type": "message_delta", "usage": {"output_tokens": 42}}
    assert reader.event(json.dumps(start).encode(), b"message_start") == Seen.RUNNING_USAGE
    assert reader.event(json.dumps(stop).encode(), b"message_delta") == Seen.RUNNING_USAGE
    assert reader.event(b'{"type": "message_stop"}', b"message_stop") == Seen.END
    assert reader.usage == Usage(17, 42, cached_input_tokens=5, cache_write_tokens=2)
    assert (reader.response_id, reader.model) == ("msg_1", "m")


@pytest.mark.parametrize("terminal", ["completed", "incomplete", "failed"])
def test_a_responses_stream_is_metered_by_its_terminal_event(terminal: str) -> None:
    reader = UNKNOWN.answer(Request())
    response = {"id": "resp_1", "usage": {"input_tokens": 3, "output_tokens": 4}}
    event = {"type": f"response.{terminal}", "response": response}
    assert reader.event(json.dumps(event).encode(), None) & Seen.END
    assert reader.usage == Usage(3, 4)


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        ({"usage": {"prompt_tokens": 5, "total_tokens": 5}}, Usage(5, 0)),
        ({"usage": {"total_tokens": 5}}, None),
        ({"usage": {"prompt_tokens": "5"}}, None),
        ({"usage": None}, None),
        ({}, None),
        ([], None),
    ],
)
def test_a_body_is_metered_where_it_tells(body: Any, usage: Usage | None) -> None:
    reader = UNKNOWN.answer(Request())
    reader.whole(json.dumps(body).encode())
    assert reader.usage == usage


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b'{"model": 5}'])
def test_a_request_is_read_leniently(body: bytes) -> None:
    assert UNKNOWN.read_request(body) == Request()
    assert UNKNOWN.read_request(b'{"model": "m", "stream": true}') == Request("m", stream=True)
    assert UNKNOWN.input_of(body) == Input()


def test_paths_that_callers_make_up_are_not_kept_for_ever() -> None:
    dialects = Dialects()
    for number in range(2_000):
        assert dialects.of(f"/made-up/{number}") is UNKNOWN
        assert dialects.of(f"/{'x' * number}/v1/messages/").name == "anthropic.messages"
    assert len(dialects._known) <= 256
    assert max(map(len, dialects._known)) <= 256
