"""Events that hold a piece of text only are read by a shorter way, and tell the same."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inf_middleware.wire.dialects import Dialects
from inf_middleware.wire.request import Request
from inf_middleware.wire.seen import Seen
from inf_middleware.wire.texts import TEXT_BYTES_MAX, Texts

CHAT = Dialects().of("/v1/chat/completions")
COMPLETIONS = Dialects().of("/v1/completions")

VALUES: st.SearchStrategy[Any] = st.sampled_from(
    ["a", "", "账", None, 0, 7, [], ["b"], [{"text": "c"}], {}, {"d": 1}]
)
CALLS = st.sampled_from([[{"function": {"name": "f", "arguments": "{}"}}], [1], {"function": 1}])
DELTAS = st.dictionaries(
    st.sampled_from(["content", "reasoning_content", "reasoning", "refusal", "role", "other"]),
    VALUES,
    max_size=3,
) | st.fixed_dictionaries({"tool_calls": CALLS}, optional={"content": VALUES})
CHOICES = st.fixed_dictionaries(
    {},
    optional={
        "delta": DELTAS | VALUES,
        "text": VALUES,
        "index": st.sampled_from([0, 1, -1, "1", None, 10**6]),
        "finish_reason": st.sampled_from([None, "stop"]),
    },
)
REPORTS = st.sampled_from([None, {}, 1, {"prompt_tokens": 5, "completion_tokens": 2}])
EVENTS = st.fixed_dictionaries(
    {"choices": st.lists(CHOICES, max_size=2) | VALUES},
    optional={
        "usage": REPORTS,
        "error": st.sampled_from([None, "", "no", {"message": "no"}]),
        "type": st.sampled_from([None, 1, "error"]),
        "id": st.sampled_from(["other", "another", None, 5]),
        "model": st.sampled_from(["m", None, {}]),
    },
)


def facts(reader: Any) -> tuple[Any, ...]:
    return (
        reader.texts(),
        reader.usage,
        reader.tells_input,
        reader.tells_output,
        reader.usage_covers,
        reader.has_output,
        reader.output_so_far,
        reader.text_characters,
        reader.unfinished,
        reader.failed,
        reader.usage_final,
        reader.response_id,
        reader.model,
    )


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS], ids=lambda dialect: dialect.name)
@given(
    events=st.lists(EVENTS, max_size=6), choices=st.integers(1, 2), begins_with_names=st.booleans()
)
@example(
    events=[
        {"choices": [{"delta": {"content": "a"}}]},
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}},
        {"choices": [{"delta": {"content": "b"}}]},
    ],
    choices=1,
    begins_with_names=True,
)
def test_an_event_tells_the_same_by_the_shorter_way(
    dialect: Any, events: list[dict[str, Any]], choices: int, begins_with_names: bool
) -> None:
    short, long = (dialect.answer(Request(choices=choices)) for _ in range(2))
    if begins_with_names:
        named = json.dumps({"id": "c", "model": "m", "choices": []}).encode()
        assert short.event(named, None) == long.event(named, None)
    for event in events:
        data = json.dumps(event).encode()
        # Any type keeps an event from the shorter way, and one that is no text changes nothing.
        whole = json.dumps({"type": 0, **event}).encode()
        seen = short.event(data, None)
        assert seen == long.event(whole, None)
        if seen == Seen.NOTHING:
            learned = short.alike(b"data: %s\n\n" % data, data, None)
            assert (learned is None) == (long.alike(b"data: %s\n\n" % whole, whole, None) is None)
        assert facts(short) == facts(long)


@pytest.mark.parametrize("dialect", [CHAT, COMPLETIONS], ids=lambda dialect: dialect.name)
def test_both_dialects_of_openai_have_the_shorter_way(dialect: Any) -> None:
    assert dialect.answers.plain is not None


def test_text_takes_no_more_memory_than_its_letters_however_small_its_pieces() -> None:
    texts = Texts(cumulative=False)
    tracemalloc.start()
    try:
        for number in range(400_000):
            texts.add(f"{number:06}", (0,))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert texts.characters == 2_400_000
    assert taken < 2 * TEXT_BYTES_MAX
