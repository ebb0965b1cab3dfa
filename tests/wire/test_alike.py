import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.wire.alike import KEPT_MAX, alike_of
from inf_middleware.wire.dialect import Request
from inf_middleware.wire.dialects.openai_chat import CHAT
from inf_middleware.wire.intake import Intake, intake_of
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.texts import Texts

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


# Two choices in one event, and a report within: they begin and end as a piece of one text does.
CHOICES = b'a"}, "finish_reason": null}, {"index": 1, "delta": {"content": "b'
REPORT = b'a"}, "finish_reason": null}], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, '
REPORT += b'"choices": [{"index": 0, "delta": {"content": "b'

# What may stand between two quotes, and what no server should write there.
RAWS = st.one_of(
    st.text(max_size=8).map(lambda text: json.dumps(text)[1:-1].encode()),
    st.text(max_size=8).map(lambda text: text.encode().replace(b'"', b"")),
    st.sampled_from(
        [
            *(b"", b",", b"\\", b"\\\\", b"\\n", b"\\u4f60", b"\\ud83d", b"\\ude00", b"\\x"),
            *(b"\xff", b"\xe4\xbd", b"\n", b"\r", b"\n\ndata: [1]\n\n", b"\x00", b"a" * 1_000),
            *(CHOICES, REPORT),
        ]
    ),
)


def read(taken: Intake, piece: bytes) -> None:
    if taken.alike is not None and taken.alike.takes(piece):
        return
    if taken.read_one(piece) is None:
        for frame in taken.feed(piece):
            taken.read(frame)


def read_by_frame(taken: Intake, piece: bytes) -> None:
    for frame in taken.feed(piece):
        taken.read(frame)


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
        read(fast, piece)
        read_by_frame(slow, piece)
    assert by_one.texts() == whole.texts()
    assert by_one.usage == whole.usage
    assert by_one.usage_covers == whole.usage_covers
    assert by_one.has_output == whole.has_output
    assert by_one.output_so_far == whole.output_so_far


@given(st.lists(st.tuples(RAWS, st.booleans()), max_size=KEPT_MAX + 8))
def test_whoever_asks_at_any_moment_is_told_what_reading_each_piece_would_tell(
    given_pieces: list[tuple[bytes, bool]],
) -> None:
    fast, by_one = intake()
    slow, whole = intake()
    for piece in (chunk("first"), chunk("second")):
        read(fast, piece)
        read_by_frame(slow, piece)
    for raw, is_asked in given_pieces:
        piece = chunk("here").replace(b"here", raw)
        read(fast, piece)
        read_by_frame(slow, piece)
        if is_asked:
            assert by_one.output_so_far == whole.output_so_far
            assert by_one.text_characters == whole.text_characters
        assert by_one.usage == whole.usage
    assert by_one.texts() == whole.texts()
    assert by_one.output_so_far == whole.output_so_far
    assert by_one.usage_covers == whole.usage_covers


def test_what_is_kept_unread_is_bounded() -> None:
    taken, reader = intake()
    for number in range(1_000):
        read(taken, chunk(f" word{number}"))
    assert len(reader._texts._kept) < KEPT_MAX
    read(taken, chunk("a" * 100_000))
    assert not reader._texts._kept
    assert reader.output_so_far == 1_001


def test_of_pieces_that_each_repeat_the_last_only_one_is_kept() -> None:
    reader = AnswerReader(replace(CHAT.answers, cumulative=True))
    taken = intake_of(reader, b"text/event-stream", b"")
    assert taken is not None
    for length in range(1, KEPT_MAX):
        read(taken, chunk("a" * length))
    assert reader.texts() == ["a" * length]
    assert reader.text_characters == length


@given(WORDS, WORDS)
def test_what_is_taken_for_the_text_is_what_json_says(first: str, second: str) -> None:
    texts = Texts(cumulative=False)
    taken = False
    if first and first.isprintable():
        alike = alike_of(chunk(first), first, 0, texts)
        taken = alike is not None and alike.takes(chunk(second))
    said = json.loads(chunk(second)[6:])["choices"][0]["delta"]["content"]
    assert texts.joined() == ([said] if taken else [])


@pytest.mark.parametrize("text", ["m", "one", "content"])
def test_a_text_that_stands_elsewhere_in_its_piece_teaches_nothing(text: str) -> None:
    assert alike_of(chunk(text), text, 0, Texts(cumulative=False)) is None


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
