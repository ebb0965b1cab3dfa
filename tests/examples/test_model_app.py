"""The model server of the examples, alone, on real uvicorn and through the `openai` client."""

import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples import model_app
from examples.model_app import MODELS, MarkovModel, build_app, tokenize
from tests.servers import serving

DEADLINE_S = 15.0
MODEL = MODELS[0]
ENOUGH = 5_000  # tokens: more than any answer is long
CORPUS = Path(model_app.__file__).with_name("corpus.txt").read_text("utf-8")
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Served:
    """A running model server, its log, and a client of it."""

    def __init__(self, app: Any, url: str, client: openai.OpenAI) -> None:
        self.url = url
        self.log: list[dict[str, Any]] = app.state.log
        self.client = client

    def ask(self, text: str = "Tell me about tea.", **more: Any) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return self.client.chat.completions.create(
            **{"model": MODEL, "messages": messages, "max_tokens": ENOUGH, **more}
        )

    def logged(self, usage: Any) -> None:
        """The usage that the client was told is what the server has written down."""
        (entry,) = self.log
        assert entry == {
            "model": MODEL,
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
        }
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


@pytest.fixture
def served() -> Iterator[Served]:
    app = build_app()
    with (
        serving(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        yield Served(app, url, client)


def text_of(chunks: list[Any], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


def test_the_usage_of_an_answer_is_counted_in_the_models_own_tokens(served: Served) -> None:
    answer = served.ask("Tea, 茶 and 12 boats?")
    (choice,) = answer.choices
    assert answer.usage.prompt_tokens == len(tokenize("Tea, 茶 and 12 boats?"))
    assert answer.usage.completion_tokens == len(tokenize(choice.message.content))
    assert choice.finish_reason == "stop"
    served.logged(answer.usage)


def test_a_stream_is_the_same_text_token_by_token(served: Served) -> None:
    whole = served.ask()
    chunks = list(served.ask(stream=True))
    assert text_of(chunks) == whole.choices[0].message.content
    assert len(chunks) == whole.usage.completion_tokens + 1  # and one that ends it
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert {chunk.id for chunk in chunks} != {whole.id}
    assert len({chunk.id for chunk in chunks}) == 1
    assert served.log[0] == served.log[1]


def test_a_stream_tells_no_usage_unless_asked(served: Served) -> None:
    chunks = list(served.ask(stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)


def test_a_stream_that_was_asked_tells_usage_in_one_more_chunk(served: Served) -> None:
    chunks = list(served.ask(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].usage.completion_tokens == len(tokenize(text_of(chunks)))
    served.logged(chunks[-1].usage)


@pytest.mark.parametrize("stream", [False, True])
def test_two_choices_differ_and_both_are_counted(served: Served, stream: bool) -> None:
    if stream:
        chunks = list(served.ask(n=2, stream=True, stream_options={"include_usage": True}))
        texts, usage = [text_of(chunks, 0), text_of(chunks, 1)], chunks[-1].usage
    else:
        answer = served.ask(n=2)
        texts, usage = [choice.message.content for choice in answer.choices], answer.usage
    assert texts[0] != texts[1]
    assert usage.completion_tokens == sum(len(tokenize(text)) for text in texts)
    served.logged(usage)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
@pytest.mark.parametrize("cap", [1, 7])
def test_a_cap_ends_the_answer(served: Served, name: str, cap: int) -> None:
    answer = served.ask(**{"max_tokens": None, name: cap})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == cap
    chunks = list(served.ask(stream=True, **{"max_tokens": None, name: cap}))
    assert chunks[-1].choices[0].finish_reason == "length"
    assert text_of(chunks) == answer.choices[0].message.content


def test_an_answer_that_just_fits_its_cap_has_stopped_by_itself(served: Served) -> None:
    length = served.ask().usage.completion_tokens
    assert served.ask(max_tokens=length).choices[0].finish_reason == "stop"
    assert served.ask(max_tokens=length - 1).choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_the_user_names_is_called(served: Served, stream: bool) -> None:
    answer = served.ask("Use get_weather for Hangzhou.", tools=[TOOL], stream=stream)
    if stream:
        (chunk,) = answer
        choice, (call,) = chunk.choices[0], chunk.choices[0].delta.tool_calls
    else:
        choice, (call,) = answer.choices[0], answer.choices[0].message.tool_calls
        assert choice.message.content is None
        served.logged(answer.usage)
    assert choice.finish_reason == "tool_calls"
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Hangzhou"}
    assert served.log[0]["completion_tokens"] > 0


def test_the_result_of_a_tool_is_answered_in_words(served: Served) -> None:
    asked: Any = {"role": "user", "content": "Use get_weather for Hangzhou."}
    called = served.ask(messages=[asked], tools=[TOOL]).choices[0].message
    result = {
        "role": "tool",
        "tool_call_id": called.tool_calls[0].id,
        "content": "get_weather says rain",
    }
    history = [asked, called.model_dump(exclude_none=True), result]
    answer = served.ask(messages=history, tools=[TOOL]).choices[0]
    assert answer.message.tool_calls is None
    assert answer.message.content


def test_a_tool_that_is_not_named_is_not_called(served: Served) -> None:
    answer = served.ask("What is get_weather_map?", tools=[TOOL])
    assert answer.choices[0].message.tool_calls is None


BAD: list[tuple[str | None, dict[str, Any]]] = [
    ("model", {"model": None}),
    ("model", {"model": 5}),
    ("messages", {"messages": None}),
    ("messages", {"messages": []}),
    ("messages", {"messages": "tea"}),
    ("messages", {"messages": [1]}),
    ("messages", {"messages": [{"role": "user", "content": 5}]}),
    ("messages", {"messages": [{"role": "user", "content": ["tea"]}]}),
    ("messages", {"messages": [{"role": "user", "content": [{"text": 5}]}]}),
    ("n", {"n": 0}),
    ("n", {"n": 9}),
    ("n", {"n": True}),
    ("max_tokens", {"max_tokens": 0}),
    ("max_tokens", {"max_tokens": 2.5}),
    ("max_completion_tokens", {"max_completion_tokens": "many"}),
    ("stream", {"stream": "yes"}),
    ("stream_options", {"stream": True, "stream_options": [1]}),
    ("tools", {"tools": 5}),
    ("tools", {"tools": [1]}),
    ("tools", {"tools": [{"function": {}}]}),
    ("tools", {"tools": [{"function": {"name": "f", "parameters": []}}]}),
]


@pytest.mark.parametrize(("param", "wrong"), BAD, ids=[json.dumps(wrong) for _, wrong in BAD])
def test_bad_input_is_a_400_that_names_it(
    served: Served, param: str, wrong: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        served.ask(extra_body=wrong)
    assert (caught.value.type, caught.value.param) == ("invalid_request_error", param)
    assert param in caught.value.message
    assert served.log == []


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[]", b'"tea"', b"null", b""])
def test_a_body_that_is_no_object_is_a_400(served: Served, body: bytes) -> None:
    with pytest.raises(openai.BadRequestError):
        served.client.post(
            "/chat/completions",
            cast_to=object,
            content=body,
            options={"headers": {"content-type": "application/json"}},
        )
    assert served.log == []


def test_parts_of_a_message_are_read_as_one_text(served: Served) -> None:
    parts = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "about tea."}]
    in_parts = served.ask(messages=[{"role": "user", "content": parts}])
    assert in_parts.choices[0].message.content == served.ask().choices[0].message.content


def test_the_models_are_those_of_the_price_list(served: Served) -> None:
    assert [model.id for model in served.client.models.list()] == list(MODELS)


def test_a_stream_stops_when_its_client_has_gone() -> None:
    app = build_app(pace_s=0.01)
    body = json.dumps(
        {"model": MODEL, "n": 8, "stream": True, "messages": [{"role": "user", "content": "tea"}]}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with serving(app) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + body)
            while b"data: " not in connection.recv(4096):
                pass
        (entry,) = app.state.log
        # Still when half a second brings not one of some fifty tokens more.
        deadline = time.monotonic() + DEADLINE_S
        for before in iter(lambda: entry["completion_tokens"], None):
            time.sleep(0.5)
            if entry["completion_tokens"] == before:
                break
            assert time.monotonic() < deadline, "the stream went on without its client"
    whole = sum(len(list(MarkovModel(CORPUS).generate("tea", choice))) for choice in range(8))
    assert 0 < entry["completion_tokens"] < whole / 4


@given(st.text())
def test_tokens_make_up_the_whole_text(text: str) -> None:
    assert "".join(tokenize(text)) == text


@given(st.text(max_size=40), st.integers(0, 7))
def test_the_same_prompt_gives_the_same_text_and_it_ends(prompt: str, choice: int) -> None:
    first, again = (list(MARKOV.generate(prompt, choice)) for _ in range(2))
    assert first == again
    assert 0 < len(first) < ENOUGH


def test_texts_are_the_models_own_and_made_of_what_it_has_read() -> None:
    texts = [list(MARKOV.generate(f"prompt {number}", 0)) for number in range(50)]
    lines = [line for text in texts for line in "".join(text).split("\n")]
    paragraphs = set(CORPUS.split("\n\n"))
    assert not paragraphs.intersection(lines)
    assert len({"".join(text) for text in texts}) == len(texts)
    pairs = set(itertools.pairwise(CORPUS_TOKENS))
    beaten = set(zip(CORPUS_TOKENS, CORPUS_TOKENS[1:], CORPUS_TOKENS[2:], strict=False))
    left = [three for text in texts for three in zip(text, text[1:], text[2:], strict=False)]
    assert any(three not in beaten for three in left if "\n" not in three)
    for text in texts:
        assert all(p in pairs for p in itertools.pairwise(text) if "\n" not in p)


def test_a_chinese_question_gets_a_chinese_answer() -> None:
    for choice in range(20):
        text = "".join(MARKOV.generate("港口在哪里？", choice))
        assert not any("a" <= character.lower() <= "z" for character in text)
        assert any("\u4e00" <= character <= "\u9fff" for character in text)


MARKOV = MarkovModel(CORPUS)
CORPUS_TOKENS = tokenize(CORPUS.strip())
