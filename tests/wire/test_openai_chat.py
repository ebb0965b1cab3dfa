"""The chat dialect, on recorded answers of real servers and on what is odd."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware import Usage
from inf_middleware.domain.errors import InvalidRequest
from inf_middleware.wire.dialects import Dialects
from inf_middleware.wire.dialects.openai_chat import CHAT
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.request import Request
from inf_middleware.wire.seen import Seen
from inf_middleware.wire.sse import SSEReader
from inf_middleware.wire.texts import CHOICES_MAX

SAMPLES = Path(__file__).parent / "samples"
HELLO = "Hello! How can I help you today?"


def chat_reader(choices: int) -> AnswerReader:
    return CHAT.answer(Request(choices=choices))


def body_of(name: str) -> bytes:
    head, _, body = (SAMPLES / f"{name}.http").read_bytes().partition(b"\n\n")
    assert head.startswith(b"# POST")
    return body


def read_stream(stream: bytes, cuts: list[int] | None = None, choices: int = 1) -> Any:
    edges = sorted({0, len(stream), *(min(cut, len(stream)) for cut in cuts or [])})
    sse, reader = SSEReader(), chat_reader(choices)
    frames = [f for a, b in itertools.pairwise(edges) for f in sse.feed(stream[a:b])]
    last = sse.close()
    seen = [
        reader.event(frame.data, frame.event)
        for frame in [*frames, *([last] if last else [])]
        if frame.data is not None
    ]
    return reader, seen


@pytest.mark.parametrize(
    ("sample", "usage", "text"),
    [
        ("vllm.chat", Usage(15, 12), HELLO),
        ("vllm.chat_length", None, None),
        ("llama_cpp.chat", Usage(15, 11), HELLO),
        ("llama_cpp.chat_length", None, None),
    ],
)
def test_a_recorded_answer_gives_its_usage_and_text(
    sample: str, usage: Usage | None, text: str | None
) -> None:
    reader = chat_reader(1)
    body = body_of(sample)
    reader.whole(body)
    told = json.loads(body)["usage"]
    assert reader.usage == (usage or Usage(told["prompt_tokens"], told["completion_tokens"]))
    assert reader.usage_final
    assert reader.texts() == [text or json.loads(body)["choices"][0]["message"]["content"]]
    assert (reader.model, reader.response_id) == ("tiny", json.loads(body)["id"])


@pytest.mark.parametrize(
    ("sample", "usage", "choices"),
    [
        ("vllm.chat_stream", None, 1),
        ("vllm.chat_stream_usage", Usage(15, 12), 1),
        ("vllm.chat_stream_continuous_usage", Usage(15, 4), 1),
        ("vllm.chat_n2_stream", None, 2),
        ("llama_cpp.chat_stream", None, 1),
        ("llama_cpp.chat_stream_usage", None, 1),
        ("llama_cpp.chat_tools_stream", None, 1),
    ],
)
def test_a_recorded_stream_gives_its_usage_and_text(
    sample: str, usage: Usage | None, choices: int
) -> None:
    stream = body_of(sample)
    reader, seen = read_stream(stream, choices=choices)
    assert reader.usage == usage
    assert reader.usage_final is (usage is not None)
    assert reader.has_output
    assert not reader.failed
    assert len(reader.texts()) == choices
    assert seen[-1] == Seen.END
    assert sum(bool(one & Seen.USAGE_ONLY) for one in seen) == (usage is not None)


def test_a_recorded_failure_in_the_middle_is_a_failure_with_output() -> None:
    reader, seen = read_stream(body_of("vllm.error_mid_stream"))
    assert reader.failed
    assert reader.has_output
    assert reader.usage is None
    assert seen[-1] == Seen.END


@given(
    st.sampled_from(["vllm.chat_stream_usage", "vllm.chat_n2_stream", "llama_cpp.chat_stream"]),
    st.lists(st.integers(0, 5_000), max_size=20),
)
def test_any_cut_of_a_recorded_stream_gives_the_same_facts(sample: str, cuts: list[int]) -> None:
    stream = body_of(sample)
    whole, seen = read_stream(stream, choices=2)
    cut, seen_cut = read_stream(stream, cuts, choices=2)
    assert seen == seen_cut
    assert (cut.usage, cut.texts(), cut.has_output) == (
        whole.usage,
        whole.texts(),
        whole.has_output,
    )


def event(payload: Any) -> bytes:
    return json.dumps(payload).encode()


def chunk(text: str | None = None, *, index: int = 0, **more: Any) -> bytes:
    finish = more.pop("finish", None)
    delta = {} if text is None else {"content": text}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return event({"id": "x", "choices": [choice], **more})


def usage(prompt: int, output: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": output, **more}


def test_a_report_of_the_whole_holds_however_many_choices_have_told_theirs() -> None:
    reader = chat_reader(CHOICES_MAX)
    for index in range(CHOICES_MAX):
        reader.event(chunk("a", index=index, usage=usage(9, 1), finish="stop"), None)
    assert reader.usage == Usage(9, CHOICES_MAX)
    end = event({"id": "x", "choices": [], "usage": usage(9, 5_000)})
    assert reader.event(end, None) == Seen.USAGE_ONLY | Seen.END
    assert (reader.usage, reader.usage_final) == (Usage(9, 5_000), True)


def test_a_later_report_replaces_an_earlier_one() -> None:
    reader = chat_reader(1)
    for output in range(1, 6):
        assert reader.event(chunk("a", usage=usage(9, output)), None) == Seen.RUNNING_USAGE
        assert (reader.usage, reader.usage_final) == (Usage(9, output), False)
    reader.event(chunk(finish="stop"), None)
    last = event({"choices": [], "usage": usage(9, 6)})
    assert reader.event(last, None) == Seen.USAGE_ONLY | Seen.END
    assert (reader.usage, reader.usage_final) == (Usage(9, 6), True)


def test_usage_in_the_last_chunk_of_the_last_choice_is_of_the_whole() -> None:
    reader = chat_reader(2)
    first = chunk(finish="stop", index=0, usage=usage(9, 1))
    assert reader.event(first, None) == Seen.RUNNING_USAGE
    assert not reader.usage_final
    last = chunk(finish="stop", index=1, usage=usage(9, 2))
    assert reader.event(last, None) == Seen.RUNNING_USAGE | Seen.END
    assert reader.usage_final


def test_usage_null_is_no_usage() -> None:
    reader = chat_reader(1)
    assert reader.event(chunk("a", usage=None), None) == Seen.NOTHING
    assert reader.usage is None


def test_a_usage_object_of_an_empty_chunk_is_ours_even_where_it_tells_nothing() -> None:
    reader = chat_reader(1)
    assert reader.event(event({"choices": [], "usage": {}}), None) == Seen.USAGE_ONLY
    assert reader.usage is None


def test_text_that_speaks_of_usage_is_text() -> None:
    text = 'He wrote "usage": {"prompt_tokens": 5} and [DONE].'
    reader = chat_reader(1)
    assert reader.event(chunk(text), None) == Seen.NOTHING
    assert reader.usage is None
    assert reader.texts() == [text]


@pytest.mark.parametrize(
    ("told", "parts"),
    [
        ({"prompt_tokens_details": {"cached_tokens": 40}}, (40, 0, 0)),
        ({"prompt_tokens_details": {"cached_tokens": 400}}, (100, 0, 0)),
        ({"prompt_tokens_details": {"cache_write_tokens": 7}}, (0, 7, 0)),
        ({"prompt_tokens_details": {"created_cache_tokens": 7}}, (0, 7, 0)),
        ({"completion_tokens_details": {"reasoning_tokens": 30}}, (0, 0, 30)),
        ({"reasoning_tokens": 30}, (0, 0, 30)),
        ({"prompt_tokens_details": None, "completion_tokens_details": 5}, (0, 0, 0)),
        ({"prompt_tokens_details": {"cached_tokens": -1}}, (0, 0, 0)),
    ],
)
def test_cached_written_and_reasoning_tokens_are_parts(
    told: dict[str, Any], parts: tuple[int, int, int]
) -> None:
    reader, body = chat_reader(1), event({"usage": usage(100, 50, **told)})
    reader.whole(body)
    assert reader.usage == Usage(100, 50, *parts)
    assert CHAT.read_whole(Request(), body).usage == reader.usage


def test_every_kind_of_output_is_output() -> None:
    reader = chat_reader(1)
    function = {"name": "f", "arguments": "{}"}
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""},
        {"reasoning": "a"},
        {"reasoning_content": "b"},
        {"refusal": "c"},
        {"tool_calls": [{"index": 0, "function": function}]},
        {"function_call": function},
        {"content": [{"type": "text", "text": "d"}, {"type": "x"}, 5]},
    ]
    reader.event(event({"choices": [{"index": 0, "delta": deltas[0]}]}), None)
    assert not reader.has_output
    for delta in deltas[1:]:
        reader.event(event({"choices": [{"index": 0, "delta": delta}]}), None)
    assert reader.texts() == ["abcf{}f{}d"]


def test_an_odd_shape_does_not_hide_the_usage() -> None:
    reader = chat_reader(1)
    odd = {"choices": [{"delta": "what"}], "usage": usage(3, 4), "model": "m"}
    reader.whole(event(odd))
    assert (reader.usage, reader.model) == (Usage(3, 4), "m")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "usage",
                    "delta",
                    "message",
                    "content",
                    "error",
                    "index",
                    "prompt_tokens",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
)


@given(st.one_of(st.binary(max_size=100), JSON.map(event)))
def test_no_bytes_whatever_make_a_reader_raise(data: bytes) -> None:
    for reader in (chat_reader(1), Dialects().of("/x").answer(Request())):
        reader.event(data, None)
        reader.whole(data)
        assert isinstance(reader.texts(), list)


def test_deep_nesting_is_survived() -> None:
    for dialect in (CHAT, Dialects().of("/x")):
        dialect.answer(Request()).whole(b'{"a":' * 100_000)


HANDS_OFF = Request(stream=True)


def test_parts_that_think_are_output_as_those_that_answer() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "Let me see."}]}
    content = [thinking, {"type": "text", "text": " Four."}, {"type": "image_url", "image_url": {}}]
    reader = CHAT.answer(Request())
    reader.whole(json.dumps({"choices": [{"index": 0, "message": {"content": content}}]}).encode())
    assert reader.texts() == ["Let me see. Four."]


MAY_ASK = Request(stream=True, may_ask=True)
WANTS = Request(stream=True, wants_usage=True)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, Request()),
        ({"model": "m"}, Request(model="m")),
        ({"stream": True}, MAY_ASK),
        ({"stream": "true"}, MAY_ASK),
        ({"stream": 1}, MAY_ASK),
        ({"stream": "no"}, Request()),
        ({"stream": True, "stream_options": None}, MAY_ASK),
        ({"stream": True, "stream_options": {}}, HANDS_OFF),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, HANDS_OFF),
        *(
            ({"stream": True, "stream_options": {"include_usage": yes}}, WANTS)
            for yes in ("true", "Yes", 1, 1.0)
        ),
        *(
            ({"stream": True, "stream_options": {"include_usage": no}}, MAY_ASK)
            for no in (None, "false", 0)
        ),
        ({"stream": True, "stream_options": {"include_usage": [1]}}, HANDS_OFF),
        ({"stream": True, "stream_options": {"include_usage": False}}, MAY_ASK),
        ({"stream": True, "stream_options": {"include_usage": True}}, WANTS),
        ({"stream": True, "stream_options": [1]}, HANDS_OFF),
        ({"stream": False, "stream_options": {}}, Request()),
        ({"max_tokens": 5}, Request(output_cap=5)),
        ({"max_tokens": 5, "max_completion_tokens": 7}, Request(output_cap=7)),
        ({"max_tokens": 7, "max_completion_tokens": 5}, Request(output_cap=7)),
        *(
            ({"max_tokens": text}, Request(output_cap=5))
            for text in ("5", "+5", " 5", "5.0", "0_5", "5.\n")
        ),
        *(({"max_tokens": text}, Request()) for text in ("-5", "5.5", "5_", "five", "", "５")),
        ({"n": "+8"}, Request(choices=8)),
        ({"max_tokens": 5.0}, Request(output_cap=5)),
        ({"max_tokens": 5.5}, Request()),
        ({"max_tokens": True}, Request()),
        ({"max_tokens": -1}, Request()),
        ({"max_tokens": 10**18}, Request(output_cap=10**18)),
        ({"max_tokens": "9" * 5_000}, Request()),
        ({"n": 3}, Request(choices=3)),
        ({"n": 0}, Request()),
        ({"n": [2]}, Request()),
    ],
)
def test_a_request_is_read_as_a_lax_server_would(fields: dict[str, Any], expected: Request) -> None:
    assert CHAT.read_request(json.dumps(fields).encode()) == expected


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "is empty"),
        (b" \r\n", "is empty"),
        (b"{", "is not JSON"),
        (b"[1]", "is a JSON list"),
        (b"5", "is a JSON int"),
        (b'{"model": "\xff"}', "is not UTF-8"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        CHAT.read_request(body)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), VALUES),
    st.none() | st.dictionaries(st.sampled_from(["a", "include_usage", "b"]), VALUES),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_asking_for_usage_changes_nothing_else(
    fields: dict[str, Any], options: Any, encoding: str
) -> None:
    fields = {**fields, "stream_options": options}
    body = json.dumps(fields).encode(encoding)
    asked = json.loads(CHAT.asking_for_usage(body))
    assert asked == {**fields, "stream_options": {**(options or {}), "include_usage": True}}


def test_asking_for_usage_keeps_the_very_bytes_of_other_values() -> None:
    body = b'{"stream":true,"temperature":1.50e0, "seed" : 12345678901234567890123, "a":"\\u4f60"}'
    asked = CHAT.asking_for_usage(body)
    for value in (b"1.50e0", b"12345678901234567890123", b'"\\u4f60"'):
        assert value in asked


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v1/chat/completions", "openai.chat"),
        ("/v1/chat/completions/", "openai.chat"),
        ("/llm/eu/v1/chat/completions", "openai.chat"),
        ("/v1/embeddings", "openai.embeddings"),
        ("/", "unknown"),
    ],
)
def test_a_dialect_is_chosen_by_the_end_of_the_path(path: str, name: str) -> None:
    assert Dialects().of(path).name == name
