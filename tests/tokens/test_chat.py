"""What of a chat request is counted."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.tokens.chat import AUDIO_TOKENS, IMAGE_TOKENS, model_input
from inf_middleware.tokens.encodings import load_encoding

# The example of OpenAI's cookbook ("How to count tokens with tiktoken"), and its 129 tokens for
# the cl100k models of a fixed snapshot.
COOKBOOK: list[dict[str, Any]] = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate"
        " jargon into plain English.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "New synergies will help drive top-line growth.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Things working well together will increase revenue.",
    },
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on opportunities"
        " for increased leverage.",
    },
    {
        "role": "system",
        "name": "example_assistant",
        "content": "Let's talk later when we're less busy about how to do better.",
    },
    {
        "role": "user",
        "content": "This late pivot means we don't have time to boil the ocean for the client"
        " deliverable.",
    },
]


def chat_input(
    messages: Any = None,
    tools: Any = None,
    functions: Any = None,
    response_format: Any = None,
    **more: Any,
) -> tuple[list[str], int]:
    return model_input([messages], (), (tools, functions, response_format), **more)


def test_the_count_is_the_published_one() -> None:
    texts, overhead = chat_input(COOKBOOK)
    encoding = load_encoding("cl100k_base")
    assert sum(len(encoding.encode(text)) for text in texts) + overhead == 129


def test_pictures_and_sound_count_flat_and_never_as_their_base64_text() -> None:
    picture = "data:image/png;base64," + "A" * 200_000
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": picture}},
                {"type": "input_audio", "input_audio": {"data": "B" * 100_000, "format": "wav"}},
            ],
        }
    ]
    texts, overhead = chat_input(messages)
    assert texts == ["user", "What is this?"]
    assert overhead == 3 + 3 + IMAGE_TOKENS + AUDIO_TOKENS


def test_tools_and_tool_calls_and_results_count() -> None:
    messages = [
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "weather", "arguments": '{"city":"X"}'}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    tools = [{"type": "function", "function": {"name": "weather"}}]
    texts, _ = chat_input(messages, tools=tools, response_format={"type": "json_object"})
    assert set(texts) >= {"weather", '{"city":"X"}', "call_1", "sunny"}
    assert '[{"type":"function","function":{"name":"weather"}}]' in texts
    assert '{"type":"json_object"}' in texts


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["role", "content", "type", "text", "tool_calls", "function", "name", "arguments"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@given(messages=JSON, tools=JSON, functions=JSON, response_format=JSON)
def test_whatever_the_json_the_input_is_texts_and_a_number(**fields: Any) -> None:
    texts, overhead = chat_input(**fields)
    assert all(isinstance(text, str) and text for text in texts)
    assert overhead >= 3


def test_deep_nesting_is_survived() -> None:
    deep: Any = "x"
    for _ in range(50_000):
        deep = [deep]
    assert chat_input(messages=deep, tools=deep)[1] >= 3
