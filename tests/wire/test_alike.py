import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.wire.alike import alike_of
from inf_middleware.wire.dialect import Request
from inf_middleware.wire.dialects.openai_chat import CHAT
from inf_middleware.wire.intake import Intake, intake_of

# What could be taken for something else: signs of JSON, of events, and names that stand around.
WORDS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        [
            "content",
            "assistant",
            '","finish_reason":"stop',
            '"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}',
            "\\",
            "\n\n",
            "\ud83d",
            "\u2028",
            "0",
        ]
    ),
)


def chunk(text: str, *, index: int = 0, **more: Any) -> bytes:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
    value = {"id": "one", "model": "m", "choices": [choice], **more}
    return b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


def intake(choices: int = 1) -> tuple[Intake, Any]:
    reader = CHAT.answer(Request(model="m", stream=True, choices=choices))
    made = intake_of(reader, b"text/event-stream", b"")
    assert made is not None
    return made, reader


@given(st.lists(st.tuples(WORDS, st.integers(0, 1), st.booleans())))
def test_texts_are_the_same_whether_pieces_are_alike_or_not(
    given_pieces: list[tuple[str, int, bool]],
) -> None:
    told = {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    pieces = [
        chunk(text, index=index, **(told if tells else {})) for text, index, tells in given_pieces
    ]
    fast, by_one = intake(2)
    slow, whole = intake(2)
    for piece in [chunk("first"), *pieces]:
        taken = fast.alike is not None and fast.alike.takes(piece)
        if not taken and fast.read_one(piece) is None:
            for frame in fast.feed(piece):
                fast.read(frame)
        for frame in slow.feed(piece):
            slow.read(frame)
    assert by_one.texts() == whole.texts()
    assert by_one.usage == whole.usage
    assert by_one.usage_covers == whole.usage_covers
    assert by_one.has_output == whole.has_output
    assert by_one.output_so_far == whole.output_so_far


@given(WORDS, WORDS)
def test_what_is_taken_for_the_text_is_what_json_says(first: str, second: str) -> None:
    taken: list[tuple[str, tuple[int, ...]]] = []
    if first and first.isprintable():
        alike = alike_of(chunk(first), first, 0, lambda *text: taken.append(text))
        if alike is not None and alike.takes(chunk(second)):
            event = json.loads(chunk(second)[6:])
            assert taken == [(event["choices"][0]["delta"]["content"], (0,))]
            return
    assert not taken


@pytest.mark.parametrize("text", ["m", "one", "content"])
def test_a_text_that_stands_elsewhere_in_its_piece_teaches_nothing(text: str) -> None:
    assert alike_of(chunk(text), text, 0, lambda *_: None) is None


def test_a_text_after_a_report_is_not_reported() -> None:
    taken, reader = intake()
    told = {"usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}
    for piece in (chunk("a"), chunk("b"), chunk("c"), chunk("d", **told)):
        if taken.read_one(piece) is None:
            for frame in taken.feed(piece):
                taken.read(frame)
    assert reader.usage_covers
    taken.read_one(chunk("e"))
    assert not reader.usage_covers
    assert reader.texts() == ["abcde"]
