import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.wire.alike import KEPT_BYTES_MAX, alike_of
from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.dialects import (
    KNOWN,
    anthropic_messages,
    cohere,
    llama_cpp,
    ollama,
    openai_completions,
    openai_responses,
    sglang,
    tgi,
)
from inf_middleware.wire.dialects.openai_chat import CHAT
from inf_middleware.wire.form import Answers
from inf_middleware.wire.intake import Intake, intake_of
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.request import Request
from inf_middleware.wire.seen import Seen
from inf_middleware.wire.texts import PACKED_BYTES_MAX, Texts
from inf_middleware.wire.usage import OPENAI_USAGE

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


SHORT = st.sampled_from([b"a", b"b c", b"\\n"])


def read(taken: Intake, piece: bytes) -> None:
    if taken.alike is not None and (taken.alike.takes(piece) or taken.alike.takes_anew(piece)):
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


@given(st.lists(st.tuples(RAWS, st.booleans()), max_size=KEPT_BYTES_MAX // 8))
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


def sse(value: dict[str, Any], name: str = "") -> bytes:
    named = b"event: %s\n" % name.encode() if name else b""
    return named + b"data: " + json.dumps(value).encode() + b"\n\n"


def named(kind: str, **more: Any) -> bytes:
    return sse({"type": kind, **more}, kind)


def line(**value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


COUNTS = {"input_tokens": 3, "output_tokens": 4}
TEXT = {"content": {"text": "here"}}

# Events of each API, with "here" for what differs.
EVENTS: dict[str, list[bytes]] = {
    anthropic_messages.MESSAGES.name: [
        named("message_start", message={"id": "one", "model": "m", "usage": COUNTS}),
        *(
            named("content_block_delta", index=index, delta={"type": f"{kind}_delta", kind: "here"})
            for kind in ("text", "thinking", "partial_json")
            for index in (0, 1)
        ),
        *(
            named(
                "content_block_start", index=index, content_block={"type": "text", "text": "here"}
            )
            for index in (0, 1)
        ),
        named("content_block_stop", index=1),
        named("ping"),
        named("error", error={"message": "here"}),
        named("message_delta", delta={"text": "here"}, usage={"output_tokens": 7}),
        named("message_stop"),
    ],
    openai_responses.RESPONSES.name: [
        named("response.output_text.delta", output_index=0, content_index=0, delta="here"),
        named("response.output_text.delta", output_index=1, content_index=0, delta="here"),
        named("response.output_text.done", output_index=0, content_index=0, text="here"),
        named("response.audio.delta", delta="here"),
        named("response.completed", response={"id": "one", "model": "m", "usage": COUNTS}),
    ],
    cohere.CHAT.name: [
        sse({"type": "content-start", "index": 0, "delta": {"message": TEXT}}),
        sse({"type": "content-delta", "index": 0, "delta": {"message": TEXT}}),
        sse({"type": "content-delta", "index": 1, "delta": {"message": TEXT}}),
        sse({"type": "content-end", "index": 0}),
        sse({"type": "message-end", "delta": {"usage": {"tokens": COUNTS}}}),
    ],
    openai_completions.COMPLETIONS.name: [
        sse({"id": "one", "model": "m", "choices": [{"index": 0, "text": "here"}]}),
        sse({"id": "one", "model": "m", "choices": [{"index": 1, "text": "here"}]}),
        sse({"choices": [{"index": 0, "text": "here"}, {"index": 1, "text": ""}]}),
        sse({"choices": [{"index": 0, "text": "here"}, {"index": 1, "text": "b"}]}),
        sse({"choices": [{"index": 1, "text": "here", "finish_reason": "stop"}]}),
        sse({"choices": [{"index": 0, "text": "here"}], "usage": {"prompt_tokens": 3}}),
        sse({"error": "here", "choices": [{"index": 0, "text": "here"}]}),
    ],
    llama_cpp.COMPLETION.name: [
        sse({"index": 0, "content": "here", "stop": False}),
        sse({"index": 1, "content": "here", "stop": False}),
        sse({"index": 0, "content": "here", "stop": True, "tokens_predicted": 4}),
    ],
    sglang.GENERATE.name: [
        sse({"text": "here"}),
        sse({"text": "here", "index": 1}),
        sse({"text": "here", "meta_info": {"prompt_tokens": 3, "completion_tokens": 4}}),
    ],
    tgi.GENERATE.name: [
        sse({"token": {"text": "here"}, "generated_text": None}),
        sse({"token": {"text": "here"}, "generated_text": "here"}),
    ],
    ollama.CHAT.name: [
        line(model="m", message={"content": "here"}, done=False),
        line(model="m", message={"content": "here", "thinking": "b"}, done=False),
        line(model="m", message={"content": "here"}, done=True, eval_count=4),
    ],
}


OWN = Dialect(
    name="own",
    answers=Answers(usage=(OPENAI_USAGE,), delta=("text",), silent=frozenset({"quiet"})),
)
EVENTS[OWN.name] = [
    sse({"text": "here"}),
    sse({"type": "quiet", "text": "here"}),
    sse({"text": "here", "usage": {}}),
    sse({"text": "here", "error": {"message": "no"}}),
    sse({"text": "here", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
]
API = {one.name: one for one in (*KNOWN, tgi.GENERATE, OWN)}


@pytest.mark.parametrize("name", EVENTS)
@given(data=st.data())
def test_so_it_is_in_every_api(name: str, data: st.DataObject) -> None:
    dialect = API[name]
    request = Request(stream=True, choices=2)
    first, second = dialect.answer(request), dialect.answer(request)
    media = b"application/x-ndjson" if dialect is ollama.CHAT else b"text/event-stream"
    fast, slow = intake_of(first, media, b""), intake_of(second, media, b"")
    assert fast is not None
    assert slow is not None
    runs = st.tuples(st.sampled_from(EVENTS[dialect.name]), st.lists(RAWS | SHORT, max_size=4))
    for event, raws in data.draw(st.lists(runs, max_size=6)):
        for raw in raws:
            piece = event.replace(b"here", raw)
            read(fast, piece)
            read_by_frame(slow, piece)
        assert first.usage == second.usage
        assert first.usage_covers == second.usage_covers
        assert (first.failed, first.usage_final) == (second.failed, second.usage_final)
        assert (first.has_output, first.model) == (second.has_output, second.model)
    assert first.texts() == second.texts()
    assert first.output_so_far == second.output_so_far
    assert first.unfinished == second.unfinished
    if first.outline is not None and second.outline is not None:
        assert first.outline.parts == second.outline.parts
        assert first.outline.open == second.outline.open
        assert first.outline.last_number == second.outline.last_number


@pytest.mark.parametrize(
    "dialect",
    [
        anthropic_messages.MESSAGES,
        openai_completions.COMPLETIONS,
        llama_cpp.COMPLETION,
        ollama.CHAT,
    ],
    ids=lambda one: one.name,
)
def test_pieces_are_taken_for_alike_in_every_api_that_numbers_none(dialect: Dialect) -> None:
    reader = dialect.answer(Request(stream=True))
    media = b"application/x-ndjson" if dialect is ollama.CHAT else b"text/event-stream"
    taken = intake_of(reader, media, b"")
    assert taken is not None
    event = next(event for event in EVENTS[dialect.name] if b"here" in event)
    for raw in (b"a", b"b"):
        read(taken, event.replace(b"here", raw))
    assert taken.alike is not None
    assert taken.alike.takes(event.replace(b"here", b"c"))
    assert reader.texts() == ["abc"]


def test_nothing_is_alike_to_what_ends_a_stream() -> None:
    taken = intake_of(llama_cpp.COMPLETION.answer(Request()), b"text/event-stream", b"")
    assert taken is not None
    taken.feed(b": hello\n\n")
    assert taken.read_one(sse({"content": "a", "stop": True})) == Seen.END
    assert taken.alike is None


def test_what_is_kept_unread_is_bounded() -> None:
    taken, reader = intake()
    for number in range(1_000):
        read(taken, chunk(f" word{number}"))
        assert sum(map(len, reader._texts._kept)) <= KEPT_BYTES_MAX
    for _ in range(1_000):
        read(taken, chunk("a" * KEPT_BYTES_MAX))
        assert sum(map(len, reader._texts._packed)) <= PACKED_BYTES_MAX
    read(taken, chunk("a" * 100_000))
    assert not reader._texts._kept
    assert reader.output_so_far == 2_001


def test_what_is_kept_comes_before_what_is_read_after_it() -> None:
    taken, reader = intake()
    pieces = [chunk(text) for text in ("first ", "second ", "third ", "fourth ")]
    for piece in (*pieces, chunk("last", service_tier="default")):
        read(taken, piece)
    assert reader.texts() == ["first second third fourth last"]


@given(st.integers(0, 200), st.lists(WORDS, max_size=40))
def test_of_what_is_alike_no_more_is_taken_than_is_paid_for(most: int, words: list[str]) -> None:
    taken, reader = intake()
    for piece in (chunk("first"), chunk("second")):
        read(taken, piece)
    assert taken.alike is not None
    alike, before = taken.alike, reader.text_characters
    alike.room = most
    for word in words:
        alike.takes(chunk(word))
    assert len("".join(reader.texts())[before:].encode("utf-8", "replace")) <= most


def test_of_pieces_that_each_repeat_the_last_only_one_is_kept() -> None:
    reader = AnswerReader(replace(CHAT.answers, cumulative=True))
    taken = intake_of(reader, b"text/event-stream", b"")
    assert taken is not None
    for length in range(1, 64):
        read(taken, chunk("a" * length))
    assert reader.texts() == ["a" * length]
    assert reader.text_characters == length


@given(WORDS, WORDS)
def test_what_is_taken_for_the_text_is_what_json_says(first: str, second: str) -> None:
    texts = Texts(cumulative=False)
    taken = False
    if first and first.isprintable() and b"\\" not in chunk(first):
        alike = alike_of(chunk(first), first, (0,), texts)
        taken = alike is not None and alike.takes(chunk(second))
    said = json.loads(chunk(second)[6:])["choices"][0]["delta"]["content"]
    assert texts.joined() == ([said] if taken else [])


@pytest.mark.parametrize("text", ["m", "one", "content"])
def test_a_text_that_stands_elsewhere_in_its_piece_teaches_nothing(text: str) -> None:
    assert alike_of(chunk(text), text, (0,), Texts(cumulative=False)) is None


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
