"""What of a chat request is counted."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.tokens.chat import (
    AUDIO_TOKENS,
    FILE_TOKENS,
    IMAGE_TOKENS,
    OPENAI_PROFILE,
    VIDEO_TOKENS,
    Profile,
    bytes_bound,
    model_input,
)
from inf_middleware.tokens.counting import Counter

PICTURE = "data:image/png;base64," + base64.b64encode(bytes(range(256)) * 40).decode()

# Words of the format in the place of keys and types, so that arbitrary JSON goes deep.
FIELDS = ["role", "content", "name", "text", "refusal", "tool_calls", "function", "function_call"]
KINDS = ["image_url", "input_audio", "file", "tool_result"]
WORDS = st.sampled_from([*FIELDS, *KINDS, "type", "arguments", "input"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | WORDS
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(WORDS | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=25,
)


def chat_input(
    messages: Any = None,
    tools: Any = None,
    functions: Any = None,
    response_format: Any = None,
    **more: Any,
) -> tuple[list[str], int]:
    return model_input([messages], (), (tools, functions, response_format), **more)


def nested(levels: int) -> Any:
    value: Any = "core"
    for level in range(levels):
        value = [value] if level % 2 else {"content": value}
    return value


def test_a_chat_is_its_roles_and_texts_and_the_overhead_of_the_template() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "name": "ann", "content": "Hello!"},
    ]
    texts, flat = chat_input(messages)
    assert texts == ["system", "Be brief.", "user", "ann", "Hello!"]
    assert flat == 3 + 2 * 3 + 1
    assert chat_input(messages, profile=Profile(5, 0, 3))[1] == 3 + 2 * 5


def test_the_example_of_the_cookbook_has_its_known_129_tokens() -> None:
    def example(name: str, content: str) -> dict[str, str]:
        return {"role": "system", "name": name, "content": content}

    messages = [
        {
            "role": "system",
            "content": "You are a helpful, pattern-following assistant that translates corporate"
            " jargon into plain English.",
        },
        example("example_user", "New synergies will help drive top-line growth."),
        example("example_assistant", "Things working well together will increase revenue."),
        example(
            "example_user",
            "Let's circle back when we have more bandwidth to touch base on opportunities for"
            " increased leverage.",
        ),
        example(
            "example_assistant",
            "Let's talk later when we're less busy about how to do better.",
        ),
        {
            "role": "user",
            "content": "This late pivot means we don't have time to boil the ocean for the client"
            " deliverable.",
        },
    ]
    texts, flat = chat_input(messages)
    assert Counter("cl100k_base").count_now(texts).tokens + flat == 129


@pytest.mark.parametrize("kind", ["text", "input_text", "output_text"])
def test_texts_of_parts_are_counted(kind: str) -> None:
    parts = [{"type": kind, "text": "one"}, {"type": "refusal", "refusal": "no"}, "three"]
    assert chat_input([{"content": parts}]) == (["one", "no", "three"], 6)


def test_calls_of_tools_their_results_and_reasoning_are_counted() -> None:
    function = {"name": "find", "arguments": '{"id":7}'}
    messages = [
        {"role": "assistant", "reasoning_content": "Hm.", "tool_calls": [{"function": function}]},
        {"role": "assistant", "reasoning": "So.", "function_call": function},
        {"role": "assistant", "tool_calls": [{"custom": {"name": "sql", "input": "select 1"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
    ]
    texts, flat = chat_input(messages)
    assert flat == 3 + 4 * 3
    assert texts == [
        *("assistant", "Hm.", "find", '{"id":7}'),
        *("assistant", "So.", "find", '{"id":7}'),
        *("assistant", "sql", "select 1"),
        *("tool", "c1", "found"),
    ]


def test_arguments_and_results_that_are_no_strings_are_counted_too() -> None:
    called = [{"function": {"name": "find", "arguments": {"id": 7}}}]
    assert chat_input([{"tool_calls": called}])[0] == ["find", '{"id":7}']
    use = {"type": "tool_use", "name": "find", "input": {"id": 7}}
    result = {"type": "tool_result", "content": [{"type": "text", "text": "found"}]}
    assert '{"id":7}' in chat_input([{"content": [use]}])[0]
    assert chat_input([{"content": [result]}])[0] == ["found"]
    assert chat_input([{"content": {"type": "text", "text": "alone"}}])[0] == ["alone"]


def test_tools_functions_and_the_form_of_the_answer_are_counted_as_compact_json() -> None:
    tools = [{"type": "function", "function": {"name": "价格", "parameters": {}}}]
    texts, flat = chat_input([], tools, [{"name": "f"}], {"type": "json_object"})
    assert texts == [
        '[{"type":"function","function":{"name":"价格","parameters":{}}}]',
        '[{"name":"f"}]',
        '{"type":"json_object"}',
    ]
    assert flat == OPENAI_PROFILE.per_reply
    assert chat_input([], [], {}, None) == ([], 3)


@pytest.mark.parametrize("odd", ["\ud800", nested(100_000)], ids=["surrogate", "deep"])
def test_tools_that_cannot_be_encoded_are_counted_all_the_same(odd: Any) -> None:
    texts, _ = chat_input([], [{"description": "much to be paid for", "odd": odd, "size": 7}])
    assert Counter("o200k_base").count_now(texts).tokens >= 5
    assert "much to be paid for" in texts[0]
    assert "7" in texts[0]


@pytest.mark.parametrize(
    ("part", "tokens"),
    [
        ({"type": "image_url", "image_url": {"url": PICTURE}}, IMAGE_TOKENS),
        ({"type": "input_image", "image_url": PICTURE}, IMAGE_TOKENS),
        ({"type": "image", "source": {"type": "base64", "data": PICTURE}}, IMAGE_TOKENS),
        ({"type": "image", "content": PICTURE}, IMAGE_TOKENS),
        ({"type": "image_embeds", "image_embeds": PICTURE}, IMAGE_TOKENS),
        ({"image_url": {"url": PICTURE}}, IMAGE_TOKENS),
        ({"type": "input_audio", "input_audio": {"data": PICTURE}}, AUDIO_TOKENS),
        ({"type": "audio_url", "audio_url": {"url": PICTURE}}, AUDIO_TOKENS),
        ({"type": "video_url", "video_url": {"url": PICTURE}}, VIDEO_TOKENS),
        ({"type": "file", "file": {"file_data": PICTURE}}, FILE_TOKENS),
        ({"type": "input_file", "file_data": PICTURE}, FILE_TOKENS),
        ({"type": "document", "source": {"data": PICTURE}}, FILE_TOKENS),
        ({"type": "unheard_of", "data": PICTURE}, 0),
    ],
)
def test_pictures_sound_and_files_count_flat_and_never_as_base64(
    part: dict[str, Any], tokens: int
) -> None:
    beside = {"type": "text", "text": "What is this?"}
    texts, flat = chat_input([{"role": "user", "content": [beside, part, part]}])
    assert texts == ["user", "What is this?"]
    assert flat == 3 + 3 + 2 * tokens


@given(
    before=st.lists(JSON, max_size=3),
    part=st.dictionaries(WORDS, JSON, max_size=3),
    kind=st.sampled_from(["image_url", "input_image", "image"]),
)
def test_a_picture_reaches_no_text_whatever_stands_around_it(
    before: list[Any], part: dict[str, Any], kind: str
) -> None:
    picture = {**part, "type": kind, "image_url": {"url": PICTURE}}
    texts, flat = chat_input([{"role": "user", "content": [*before, picture]}])
    assert not any("base64" in text for text in texts)
    assert flat >= 6 + IMAGE_TOKENS


@given(messages=JSON, tools=JSON, functions=JSON, response_format=JSON)
def test_any_json_is_taken(messages: Any, tools: Any, functions: Any, response_format: Any) -> None:
    texts, flat = chat_input(messages, tools, functions, response_format)
    assert all(type(text) is str and text for text in texts)
    assert flat >= OPENAI_PROFILE.per_reply
    assert Counter("o200k_base").count_now(texts).exact


@given(content=JSON)
def test_what_is_parsed_leniently_is_taken_as_well(content: Any) -> None:
    body = json.loads(json.dumps({"messages": [{"content": content}], "tools": content}))
    chat_input(**body)


def test_deep_nesting_is_taken() -> None:
    deep = nested(100_000)
    assert chat_input([{"content": deep}]) == (["core"], 6)
    assert chat_input(deep)[1] >= 3
    assert chat_input([{"tool_calls": [{"function": {"arguments": deep}}]}])[0]


MESSAGES = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["user", "tool"]) | SCALARS,
        "content": st.text(max_size=8) | JSON,
        "images": st.lists(st.just("aGk="), max_size=2) | st.none(),
        "tool_calls": st.lists(st.fixed_dictionaries({"function": JSON}), max_size=2),
        "output": JSON,
        "name": st.text(max_size=4),
    },
)


@given(
    st.lists(MESSAGES, max_size=4) | JSON,
    st.text(max_size=8) | JSON,
    st.booleans(),
)
def test_no_input_is_larger_than_its_bound_whatever_shape_it_has(
    messages: Any, system: Any, ascii_only: bool
) -> None:
    value = {"messages": messages, "system": system}
    body = json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    texts, flat = model_input([messages], [system])
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    for fields in ((("messages",), ("system",)), ((), ())):
        bound = bytes_bound(body, OPENAI_PROFILE, *fields)
        assert bound is None or size + flat <= bound


def test_what_only_names_a_picture_in_its_text_is_bounded_and_a_picture_is_not() -> None:
    def bound(content: Any, **more: Any) -> int | None:
        body = json.dumps({"messages": [{"role": "user", "content": content, **more}]}).encode()
        return bytes_bound(body, OPENAI_PROFILE, ("messages",), ())

    assert bound("Draw an image, or play an audio file.") is not None
    assert bound("Zeichne ein Bild über Bäume.") is not None
    assert bound([{"type": "image_url", "image_url": {"url": PICTURE}}]) is None
    assert bound("Look!", images=[PICTURE]) is None
