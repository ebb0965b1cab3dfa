"""Every dialect: where its requests and answers hold what, in any cut of the same bytes."""

import gzip
import itertools
import json
import zlib
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware import Usage
from inf_middleware.domain.errors import ConfigError
from inf_middleware.tokens.chat import model_input
from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.dialects import KNOWN, Dialects
from inf_middleware.wire.form import Answers
from inf_middleware.wire.intake import intake_of
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.request import Request
from inf_middleware.wire.seen import Seen
from inf_middleware.wire.usage import UsageAt
from tests.wire.fixtures import EXCHANGES, STREAMED, Exchange
from tests.wire.test_openai_chat import body_of

DIALECTS = Dialects()
CODINGS: dict[str, Any] = {
    "": bytes,
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


def reader_of(exchange: Exchange) -> AnswerReader:
    dialect, request = DIALECTS.of(exchange.path).read(json.dumps(exchange.request).encode())
    return dialect.answer(request)


def read(
    reader: AnswerReader, body: bytes, media: str, cuts: list[int] | None = None, coding: str = ""
) -> list[Seen]:
    """Feed a body in pieces; what comes out of it joined is what went in, decoded."""
    sent = CODINGS[coding](body)
    edges = sorted({0, len(sent), *(min(cut, len(sent)) for cut in cuts or [])})
    intake = intake_of(reader, media.encode(), coding.encode())
    assert intake is not None
    seen, out = [], b""
    for start, end in itertools.pairwise(edges):
        for frame in intake.feed(sent[start:end]):
            out += frame.raw
            seen.append(intake.read(frame))
    for frame in intake.close():
        out += frame.raw
        seen.append(intake.read(frame))
    assert out == (body if intake.is_stream else b"")
    return [one for one in seen if one]


def facts(reader: AnswerReader) -> tuple[Any, ...]:
    return (
        reader.usage,
        reader.usage_covers,
        reader.texts(),
        reader.model,
        reader.response_id,
        reader.failed,
        reader.has_output,
        reader.output_so_far,
    )


@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
def test_a_whole_answer_tells_usage_and_text(exchange: Exchange) -> None:
    if exchange.answer is None:
        return
    reader = reader_of(exchange)
    read(reader, b"\r\n\n " + json.dumps(exchange.answer).encode(), "application/json")
    assert reader.usage == exchange.usage
    assert reader.usage_covers
    assert reader.usage_final
    assert tuple(reader.texts()) == exchange.text
    assert not reader.failed
    first = exchange.answer[0] if isinstance(exchange.answer, list) else exchange.answer
    assert (reader.response_id, reader.model) == (first.get("id"), first.get("model"))


@pytest.mark.parametrize("exchange", STREAMED, ids=str)
def test_a_stream_tells_the_usage_that_the_whole_answer_tells(exchange: Exchange) -> None:
    reader = reader_of(exchange)
    seen = read(reader, exchange.stream, exchange.media)
    assert reader.usage == exchange.usage
    assert reader.usage_covers
    assert seen[-1] & Seen.END
    assert reader.output_so_far == exchange.usage.output_tokens
    assert ("Hello" in reader.texts()) is ("Hello" in "".join(exchange.text))


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("exchange", STREAMED, ids=str)
@given(cuts=st.lists(st.integers(0, 1500), max_size=30))
def test_any_cut_gives_the_same_facts(exchange: Exchange, coding: str, cuts: list[int]) -> None:
    whole, cut = reader_of(exchange), reader_of(exchange)
    seen = read(whole, exchange.stream, exchange.media)
    assert read(cut, exchange.stream, exchange.media, cuts, coding) == seen
    assert facts(cut) == facts(whole)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
def test_a_whole_answer_is_read_byte_by_byte_and_compressed(
    exchange: Exchange, coding: str
) -> None:
    whole, cut = reader_of(exchange), reader_of(exchange)
    body = json.dumps(exchange.answer).encode()
    read(whole, body, "application/json")
    read(cut, body, "application/json; charset=utf-8", list(range(3000)), coding)
    assert facts(cut) == facts(whole)


@pytest.mark.parametrize("exchange", STREAMED, ids=str)
@given(data=st.data())
def test_a_stream_that_is_cut_off_tells_no_more_than_it_sent(exchange: Exchange, data: Any) -> None:
    end = data.draw(st.integers(0, len(exchange.stream)))
    reader = reader_of(exchange)
    read(reader, exchange.stream[:end], exchange.media)
    if reader.usage is not None:
        assert reader.usage.input_tokens <= exchange.usage.input_tokens
        assert reader.usage.output_tokens <= exchange.usage.output_tokens
    whole = reader_of(exchange)
    read(whole, exchange.stream, exchange.media)
    for cut, text in zip(reader.texts(), whole.texts(), strict=False):
        assert text.startswith(cut)


@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
def test_a_request_tells_model_cap_and_input(exchange: Exchange) -> None:
    body = json.dumps(exchange.request).encode()
    dialect, request = DIALECTS.of("/mounted" + exchange.path + "/").read(body)
    assert request.model == exchange.request.get("model")
    assert request.output_cap == exchange.cap
    texts, flat = model_input(*dialect.input_of(body))
    assert (tuple(texts), flat) == (exchange.inputs, exchange.tokens)


@given(st.sampled_from(KNOWN), st.binary(max_size=200), st.sampled_from(sorted(CODINGS)))
def test_no_bytes_whatever_make_a_dialect_raise(dialect: Dialect, body: bytes, coding: str) -> None:
    for media in (b"text/event-stream", b"application/x-ndjson", b"application/json"):
        reader = dialect.answer(Request(choices=2))
        intake = intake_of(reader, media, coding.encode())
        assert intake is not None
        frames = [*intake.feed(body), *intake.feed(body), *intake.close()]
        for frame in frames:
            intake.read(frame)
        facts(reader)
    dialect.input_of(body)


@pytest.mark.parametrize(
    ("prompt", "prompts"), [("a", 1), ([1, 2], 1), (["a", "b"], 2), ([[1], [2], [3]], 3), ([], 1)]
)
def test_each_prompt_of_a_list_is_answered_n_times(prompt: Any, prompts: int) -> None:
    body = json.dumps({"prompt": prompt, "n": 2, "best_of": 5, "echo": True}).encode()
    request = DIALECTS.of("/v1/completions").read_request(body)
    assert (request.prompts, request.choices) == (prompts, 2 * prompts)
    assert request.candidates == 5 * prompts
    assert request.echo


def test_a_request_that_says_nothing_streams_where_the_server_would() -> None:
    for path, streams in (("/api/chat", True), ("/v1/chat/completions", False)):
        assert DIALECTS.of(path).read_request(b"{}").stream is streams
        assert DIALECTS.of(path).read_request(b'{"stream": false}').stream is False


@pytest.mark.parametrize(
    ("sample", "path", "usage", "text"),
    [
        ("vllm.messages", "/v1/messages", Usage(15, 12), "Hello! How can I help you today?"),
        ("vllm.responses", "/v1/responses", Usage(15, 12), "Hello! How can I help you today?"),
        ("vllm.completion", "/v1/completions", Usage(3, 8), None),
        ("llama_cpp.completion", "/v1/completions", Usage(3, 8), "рuser\n"),
        ("vllm.messages_stream", "/v1/messages", Usage(15, 12), "Hello! How can I help you today?"),
        (
            "vllm.responses_stream",
            "/v1/responses",
            Usage(15, 12),
            "Hello! How can I help you today?",
        ),
        ("vllm.completion_stream", "/v1/completions", None, None),
        ("llama_cpp.completion_stream", "/v1/completions", None, "рuser\n"),
    ],
)
def test_recorded_answers_of_real_servers_tell_theirs(
    sample: str, path: str, usage: Usage | None, text: str | None
) -> None:
    reader = DIALECTS.of(path).answer(Request())
    media = "text/event-stream" if "stream" in sample else "application/json"
    seen = read(reader, body_of(sample), media)
    assert reader.usage == usage
    assert reader.texts() == ([text] if text else reader.texts())
    assert reader.has_output
    if "stream" in sample:
        assert seen[-1] & Seen.END


def test_the_output_placeholder_of_a_message_start_is_no_report() -> None:
    (messages,) = [exchange for exchange in EXCHANGES if exchange.name == "messages"]
    reader = reader_of(messages)
    read(reader, messages.stream[: messages.stream.index(b"event: message_delta")], messages.media)
    assert reader.tells_input
    assert not reader.tells_output
    assert reader.usage == Usage(17, 0, 5, 2)


def test_running_totals_of_several_choices_add_up() -> None:
    reader = DIALECTS.of("/v1/chat/completions").answer(Request(choices=2))
    for index, output in ((0, 1), (1, 1), (0, 2), (1, 2), (0, 3)):
        chunk = {
            "choices": [{"index": index, "delta": {"content": "a"}}],
            "usage": {"prompt_tokens": 7, "completion_tokens": output},
        }
        assert reader.event(json.dumps(chunk).encode(), None) == Seen.RUNNING_USAGE
    assert reader.usage == Usage(7, 5)
    assert reader.usage_covers
    assert not reader.usage_final
    reader.event(b'{"choices": [{"index": 1, "delta": {"content": "b"}}]}', None)
    assert not reader.usage_covers


def test_a_stream_of_several_prompts_ends_with_the_last_of_them() -> None:
    dialect, request = DIALECTS.of("/completion").read(b'{"prompt": ["a", "b"], "stream": true}')
    reader = dialect.answer(request)
    seen = []
    for index, made in ((0, 2), (1, 300)):
        for _ in range(made):
            told = {"index": index, "content": " a", "stop": False}
            reader.event(json.dumps(told).encode(), None)
        told = {"index": index, "content": "", "stop": True, "tokens_evaluated": 5,
                "tokens_predicted": made}  # fmt: skip
        seen.append(reader.event(json.dumps(told).encode(), None) & Seen.END)
    assert seen == [Seen.NOTHING, Seen.END]
    assert reader.usage_of_all == Usage(10, 302)


def test_a_stream_of_several_answers_to_one_prompt_ends_with_the_last_and_has_its_input_once() -> (
    None
):
    dialect, request = DIALECTS.of("/completion").read(b'{"prompt": "a", "n_cmpl": 4}')
    reader = dialect.answer(request)
    told = [
        {"index": index, "content": "", "stop": True, "tokens_evaluated": 5, "tokens_predicted": 60}
        for index in range(4)
    ]
    seen = [reader.event(json.dumps(one).encode(), None) & Seen.END for one in told]
    assert seen == [Seen.NOTHING] * 3 + [Seen.END]
    assert reader.usage_of_all == Usage(5, 240)


@pytest.mark.parametrize("prompts", [{"text": ["a"] * 10}, {"input_ids": [[1]] * 10}, {}])
def test_a_stream_of_several_prompts_is_of_all_that_it_numbers(prompts: dict[str, Any]) -> None:
    dialect, request = DIALECTS.of("/generate").read(
        json.dumps({"stream": True, **prompts}).encode()
    )
    reader = dialect.answer(request)
    for index in range(10):
        told = {"prompt_tokens": 100, "completion_tokens": 100}
        value = {"index": index, "text": "a", "meta_info": told}
        reader.event(json.dumps(value).encode(), None)
    assert reader.usage_of_all == Usage(1_000, 1_000)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/api/chat", "/other"])
def test_an_error_in_a_200_is_a_failure(path: str) -> None:
    for data, event in (
        (b'{"error": {"message": "no"}}', None),
        (b'{"error": "he said "no""}', None),  # not escaped, as one server sends it
        (b'{"type": "error", "error": {"type": "overloaded_error"}}', b"error"),
    ):
        reader = DIALECTS.of(path).answer(Request())
        reader.event(data, event)
        assert reader.failed
        assert not reader.has_output


def test_a_failed_response_is_a_failure_with_its_usage() -> None:
    reader = DIALECTS.of("/v1/responses").answer(Request())
    failed = {
        "type": "response.failed",
        "response": {"id": "r", "usage": {"input_tokens": 3, "output_tokens": 2}},
    }
    assert reader.event(json.dumps(failed).encode(), b"response.failed") & Seen.END
    assert reader.failed
    assert reader.usage == Usage(3, 2)


def test_a_user_describes_an_api_of_their_own() -> None:
    mine = Dialect(
        name="mine",
        paths=("/v1/ask",),
        texts=("question",),
        output_cap=("limits.tokens",),
        answers=Answers(
            usage=(UsageAt(at="cost", input="in", output="out"),),
            text=("reply",),
            delta=("reply",),
            end_flag="last",
        ),
    )
    dialects = Dialects([mine, Dialect(name="chat", paths=("/chat/completions",))])
    assert dialects.of("/api/v1/ask") is mine
    assert dialects.of("/v1/chat/completions").name == "chat"
    assert mine.read_request(b'{"limits": {"tokens": 5}}').output_cap == 5
    reader = mine.answer(Request())
    reader.event(b'{"reply": "Yes"}', None)
    end = reader.event(b'{"reply": ".", "last": true, "cost": {"in": 2, "out": 3}}', None)
    assert end & Seen.END
    assert (reader.usage, reader.texts()) == (Usage(2, 3), ["Yes."])


@pytest.mark.parametrize("path", ["v1/ask", "/", ""])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="must be the end of a URL path"):
        Dialect(name="mine", paths=(path,))


@pytest.mark.parametrize(
    "path",
    ["/v1//chat/completions", "/v1/chat//completions//", "/v1/chat/./completions/.",
     "/v1/chat/x/../completions", "/v1/chat/completions\n", "/v1/chat/completions/\n"],
)  # fmt: skip
def test_a_path_is_that_of_what_a_server_may_take_it_for(path: str) -> None:
    assert DIALECTS.of(path).name == "openai.chat"


def test_no_two_dialects_claim_one_path() -> None:
    paths = [path for dialect in KNOWN for path in dialect.paths]
    assert len(paths) == len(set(paths))
