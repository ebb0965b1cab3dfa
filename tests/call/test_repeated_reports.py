"""Usage that is told twice is one bill, and the later report holds, count by count."""

import json
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Usage
from inf_middleware.wire.dialects import Dialects
from inf_middleware.wire.intake import intake_of
from inf_middleware.wire.paths import find
from inf_middleware.wire.usage import UsageAt
from tests.apps import completion, delta, event, usage_chunk, usage_of
from tests.call.test_dialect_calls import Sends, serve
from tests.kit import CHAT, STREAM, House
from tests.wire.fixtures import EVENTS, LINES, STREAMED, Exchange

DIALECTS = Dialects()


def events_of(exchange: Exchange) -> list[bytes]:
    end = b"\n" if exchange.media == LINES else b"\n\n"
    return [piece + end for piece in exchange.stream.split(end) if piece]


def places_of(exchange: Exchange) -> tuple[UsageAt, ...]:
    dialect, _ = DIALECTS.of(exchange.path).read(json.dumps(exchange.request).encode())
    return dialect.answers.usage


def cut(piece: bytes) -> tuple[bytes, bytes, bytes]:
    """What stands before the JSON of an event, the JSON, and what ends it."""
    start = piece.find(b"data:") + len(b"data:") if b"data:" in piece else 0
    data = piece[start:]
    return piece[:start], data.rstrip(), data[len(data.rstrip()) :]


def reports(exchange: Exchange, piece: bytes) -> bool:
    """Whether an event tells usage."""
    try:
        value = json.loads(cut(piece)[1])
    except ValueError:
        return False
    return any(at.read(value) for at in places_of(exchange))


def raised(value: Any) -> Any:
    """The same report with each count higher by ten."""
    if isinstance(value, dict):
        return {name: raised(one) for name, one in value.items()}
    return value + 10 if type(value) is int else value


def with_other_counts(exchange: Exchange, piece: bytes) -> bytes:
    if not reports(exchange, piece):
        return piece
    head, data, end = cut(piece)
    value = json.loads(data)
    for at in places_of(exchange):
        report = find(value, at.at)
        if isinstance(report, dict) and at.read(value):
            report.update(raised(report))
    return head + json.dumps(value).encode() + end


def billed(house: House) -> Usage:
    record = house.record  # one, or it fails
    assert (record["basis"], record["outcome"]) == ("reported", "complete")
    tokens = record["input_tokens"] + record["output_tokens"]
    assert record["amount_nano"] in {0, tokens * 10_000}  # 0: no model of the list
    assert house.in_progress("umbrella") == 0
    return Usage(
        record["input_tokens"],
        record["output_tokens"],
        record["cached_input_tokens"],
        record["cache_write_tokens"],
        record["reasoning_tokens"],
    )


@pytest.mark.parametrize("exchange", STREAMED, ids=str)
def test_a_stream_that_tells_its_usage_twice_is_billed_once(
    exchange: Exchange, tmp_path: Path
) -> None:
    pieces = [
        piece
        for one in events_of(exchange)
        for piece in ([one, one] if reports(exchange, one) else [one])
    ]
    assert len(pieces) > len(events_of(exchange))
    house = House(Sends(pieces, exchange.media), tmp_path, include_usage=False)
    answered = serve(house, exchange.request, path=exchange.path)
    assert answered.body == b"".join(pieces)
    assert billed(house) == exchange.usage


def ends_with_its_report(exchange: Exchange) -> bool:
    """Whether the first event that tells usage is the answer's end, before which it is billed."""
    dialect, request = DIALECTS.of(exchange.path).read(json.dumps(exchange.request).encode())
    reader = dialect.answer(request)
    intake = intake_of(reader, exchange.media.encode(), b"")
    assert intake is not None
    for piece in events_of(exchange):
        for frame in intake.feed(piece):
            intake.read(frame)
        if reader.usage is not None:
            break
    return reader.usage_final


@pytest.mark.parametrize("exchange", STREAMED, ids=str)
def test_of_two_reports_that_differ_the_later_is_billed_but_for_those_after_the_end(
    exchange: Exchange, tmp_path: Path
) -> None:
    once = [with_other_counts(exchange, one) for one in events_of(exchange)]
    twice = [
        piece
        for one, other in zip(events_of(exchange), once, strict=True)
        for piece in ([one, other] if one != other else [one])
    ]
    bills = []
    for number, pieces in enumerate((once, twice)):
        folder = tmp_path / str(number)
        folder.mkdir()
        house = House(Sends(pieces, exchange.media), folder, include_usage=False)
        answered = serve(house, exchange.request, path=exchange.path)
        assert answered.body == b"".join(pieces)
        bills.append(billed(house))
    later, told_twice = bills
    assert later != exchange.usage
    assert told_twice == (exchange.usage if ends_with_its_report(exchange) else later)


TOLD = [((7, 2), (7, 9)), ((7, 9), (7, 2)), ((7, 2), (8, 2))]


@pytest.mark.parametrize(("first", "second"), TOLD)
def test_running_reports_hold_until_a_later_one_also_where_that_is_smaller(
    first: tuple[int, int], second: tuple[int, int], tmp_path: Path
) -> None:
    pieces = [
        event({**delta("Hel"), "usage": usage_of(*first)}),
        event({**delta("lo"), "usage": usage_of(*second)}),
        event(delta("", finish="stop")),
        event("[DONE]"),
    ]
    house = House(Sends(pieces, EVENTS), tmp_path)
    assert serve(house, STREAM).body == b"".join(pieces)
    assert billed(house) == Usage(*second)


@pytest.mark.parametrize(
    ("options", "include_usage"),
    [
        ({"include_usage": True, "continuous_usage_stats": True}, True),
        (None, True),
        (None, "continuous"),
    ],
    ids=["its client", "ours", "ours, running"],
)
def test_who_asked_for_a_report_of_the_whole_is_billed_by_it_and_by_no_running_one(
    options: Any, include_usage: Any, tmp_path: Path
) -> None:
    # As vLLM: what was cached is told only at the end.
    whole = usage_chunk(1000, 3)
    whole["usage"]["prompt_tokens_details"] = {"cached_tokens": 960}
    pieces = [
        event({**delta("Hel"), "usage": usage_of(1000, 1)}),
        event({**delta("lo", finish="stop"), "usage": usage_of(1000, 3)}),
        event(whole),
        event("[DONE]"),
    ]
    house = House(Sends(pieces, EVENTS), tmp_path, include_usage=include_usage)
    asked = STREAM if options is None else {**STREAM, "stream_options": options}
    answered = serve(house, asked)
    assert answered.body.endswith(pieces[-1])
    assert billed(house) == Usage(1000, 3, cached_input_tokens=960)


@pytest.mark.parametrize("ends", [True, False], ids=["with [DONE]", "without"])
def test_where_the_report_that_was_asked_for_does_not_come_the_running_one_is_billed(
    ends: bool, tmp_path: Path
) -> None:
    pieces = [event({**delta("Hello", finish="stop"), "usage": usage_of(7, 2)})]
    pieces += [event("[DONE]")] if ends else []
    house = House(Sends(pieces, EVENTS), tmp_path)
    assert serve(house, STREAM).body == b"".join(pieces)
    assert billed(house) == Usage(7, 2)


@pytest.mark.parametrize("is_asked", [False, True], ids=["unasked", "asked"])
@pytest.mark.parametrize(("first", "second"), [((7, 2), (7, 2)), *TOLD])
def test_a_report_after_the_final_one_changes_no_bill_and_is_shown_to_who_asked(
    is_asked: bool, first: tuple[int, int], second: tuple[int, int], tmp_path: Path
) -> None:
    text = [event(delta("Hello")), event(delta("", finish="stop"))]
    told = [event(usage_chunk(*first)), event(usage_chunk(*second))]
    end = event("[DONE]")
    house = House(Sends([*text, *told, end], EVENTS), tmp_path)
    asked = {**STREAM, "stream_options": {"include_usage": True}}
    shown = told if is_asked else []
    assert serve(house, asked if is_asked else STREAM).body == b"".join([*text, *shown, end])
    assert billed(house) == Usage(*first)


def test_a_message_delta_that_is_repeated_is_a_running_total_and_never_a_sum(
    tmp_path: Path,
) -> None:
    def named(value: dict[str, Any]) -> bytes:
        return b"event: " + value["type"].encode() + b"\n" + event(value)

    start = {
        "type": "message_start",
        "message": {
            "id": "msg-1",
            "type": "message",
            "role": "assistant",
            "model": "inf-chat-v1",
            "content": [],
            "usage": {"input_tokens": 11, "output_tokens": 1},
        },
    }
    text = {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "text_delta", "text": "Hello"},
    }
    totals = [
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": count}}
        for count in (3, 5, 5)
    ]
    end = {"type": "message_stop"}
    pieces = [named(one) for one in (start, text, *totals, end)]
    house = House(Sends(pieces, EVENTS), tmp_path)
    body = {**STREAM, "max_tokens": 20}
    assert serve(house, body, path="/v1/messages").body == b"".join(pieces)
    assert billed(house) == Usage(11, 5)


@pytest.mark.parametrize(("first", "second"), [((7, 2), (7, 2)), *TOLD])
@pytest.mark.parametrize("between", [b'"choices"', b'"id"'], ids=["before the text", "at its head"])
def test_a_json_answer_with_two_usages_is_billed_by_the_later_as_readers_of_json_take_it(
    first: tuple[int, int], second: tuple[int, int], between: bytes, tmp_path: Path
) -> None:
    whole = json.dumps(completion("Hello", usage=usage_of(*second))).encode()
    told = b'"usage": ' + json.dumps(usage_of(*first)).encode() + b", " + between
    twice = whole.replace(between, told, 1)
    assert json.loads(twice)["usage"] == usage_of(*second)
    house = House(Sends([twice], "application/json"), tmp_path)
    assert serve(house, CHAT).body == twice
    assert billed(house) == Usage(*second)
