"""Calls in every dialect: metered, refused in its own words, and no byte changed."""

import asyncio
import gzip
import json
import logging
import zlib
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard

from inf_middleware import Account, Tier
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.tokens.chat import Profile
from inf_middleware.tokens.counters import Counting
from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.form import Answers
from inf_middleware.wire.usage import UsageAt
from tests.apps import JsonApp, completion, delta, event, read_all, usage_chunk, usage_of
from tests.call.test_any_order import cases
from tests.driver import Answered, post
from tests.kit import CHAT, ORDERS, STREAM, House
from tests.wire.fixtures import EVENTS, EXCHANGES, LINES, STREAMED, Exchange

ACCOUNTS = {"sk-five": Account("acme", tier=Tier("Tiny", 2, 1, 100_000))}


class Sends:
    """Sends given pieces with given headers, and remembers what it was asked."""

    def __init__(self, pieces: list[Any], media: str, *, coding: str = "") -> None:
        self.pieces = pieces
        self.headers = [(b"content-type", media.encode())]
        if coding:
            self.headers.append((b"content-encoding", coding.encode()))
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append(await read_all(receive))
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        for piece in self.pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def serve(house: House, body: Any, *, times: int = 1, **more: Any) -> Answered:
    async def go() -> Answered:
        for _ in range(times):
            answered = await post(house.app, body, key="sk-five", **more)
        await house.close()
        return answered

    return asyncio.run(go())


@pytest.mark.parametrize("exchange", EXCHANGES, ids=str)
def test_a_whole_answer_is_billed_by_its_usage_and_goes_out_as_it_came(
    exchange: Exchange, tmp_path: Path
) -> None:
    if exchange.answer is None:
        return
    app = JsonApp(json.dumps(exchange.answer).encode())
    house = House(app, tmp_path)
    answered = serve(house, exchange.request, path=exchange.path)
    assert answered.bodies == [app.answer]
    record = house.record
    told = (exchange.usage.input_tokens, exchange.usage.output_tokens)
    assert (record["input_tokens"], record["output_tokens"]) == told
    assert (record["basis"], record["outcome"]) == ("reported", "complete")
    assert record["endpoint"] == exchange.path


@pytest.mark.parametrize("exchange", STREAMED, ids=str)
def test_a_stream_is_billed_by_its_usage_before_its_end_leaves(
    exchange: Exchange, tmp_path: Path
) -> None:
    stream = exchange.stream
    pieces = [stream[at : at + 11] for at in range(0, len(stream), 11)]
    house = House(Sends(pieces, exchange.media), tmp_path, include_usage=False)
    request = {**exchange.request, "stream": True}
    last_seen: list[int] = []

    async def on_message(message: Any) -> None:
        if message.get("body") == pieces[-1]:
            last_seen.append(len(house.records))

    answered = serve(house, request, path=exchange.path, on_message=on_message)
    assert answered.bodies == [*pieces, b""]
    record = house.record
    told = (exchange.usage.input_tokens, exchange.usage.output_tokens)
    assert (record["input_tokens"], record["output_tokens"]) == told
    assert (record["basis"], record["outcome"]) == ("reported", "complete")
    assert last_seen[-1] == 1


CODINGS: dict[str, Any] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("coding", CODINGS)
def test_a_compressed_stream_goes_out_as_it_came_where_nothing_is_hidden(
    coding: str, tmp_path: Path
) -> None:
    stream = b"".join([event(delta("Hi")), event(usage_chunk(5, 2)), event("[DONE]")])
    packed = CODINGS[coding](stream)
    pieces = [packed[at : at + 7] for at in range(0, len(packed), 7)]
    asking = {**STREAM, "stream_options": {"include_usage": True}}
    house = House(Sends(pieces, EVENTS, coding=coding), tmp_path)
    answered = serve(house, asking)
    assert answered.body == packed
    assert answered.headers["content-encoding"] == coding
    assert (house.record["input_tokens"], house.record["output_tokens"]) == (5, 2)


@pytest.mark.parametrize("coding", CODINGS)
def test_our_event_is_taken_out_of_a_compressed_stream_which_goes_out_plain(
    coding: str, tmp_path: Path
) -> None:
    kept = [event(delta("Hi")), event("[DONE]")]
    packed = CODINGS[coding](kept[0] + event(usage_chunk(5, 2)) + kept[1])
    pieces = [packed[at : at + 7] for at in range(0, len(packed), 7)]
    house = House(Sends(pieces, EVENTS, coding=coding), tmp_path)
    answered = serve(house, STREAM)
    assert answered.body == b"".join(kept)
    assert "content-encoding" not in answered.headers
    assert (house.record["input_tokens"], house.record["output_tokens"]) == (5, 2)


def test_what_cannot_be_read_is_estimated_within_what_was_reserved(tmp_path: Path) -> None:
    house = House(Sends([b"x" * 4_000] * 9, EVENTS, coding="lzma"), tmp_path)
    serve(house, {**STREAM, "max_tokens": 50})
    record = house.record
    assert (record["output_tokens"], record["basis"]) == (50, "estimated")
    assert record["input_tokens"] > 0


def test_memoryview_pieces_are_read_and_pass_untouched(tmp_path: Path) -> None:
    pieces = [memoryview(event(delta("Hi"))), memoryview(event(usage_chunk(5, 2)))]
    house = House(Sends(pieces, EVENTS), tmp_path, include_usage=False)
    answered = serve(house, STREAM)
    assert all(sent is piece for sent, piece in zip(answered.bodies, pieces, strict=False))
    assert house.record["output_tokens"] == 2


def test_a_stream_labelled_json_is_read_as_what_it_is(tmp_path: Path) -> None:
    for media, pieces in (
        ("application/json", [event(delta("Hi")), event(usage_chunk(5, 2)), event("[DONE]")]),
        ("application/json", [b'{"response": "Hi"}\n', b'{"done": true, "eval_count": 2}\n']),
    ):
        path = "/v1/chat/completions" if pieces[0].startswith(b"data") else "/api/generate"
        (tmp_path / path[-4:]).mkdir()
        house = House(Sends(pieces, media), tmp_path / path[-4:], include_usage=False)
        answered = serve(house, STREAM, path=path)
        assert answered.bodies == [*pieces, b""]
        assert house.record["output_tokens"] == 2


def test_a_missing_part_of_a_report_is_counted_and_the_other_taken(tmp_path: Path) -> None:
    answer = {"model": "m", "response": "Hi", "done": True, "eval_count": 5}
    house = House(JsonApp(json.dumps(answer).encode()), tmp_path)
    serve(house, {"model": "m", "prompt": "Once upon a time"}, path="/api/generate")
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (4, 5)
    assert record["basis"] == "counted"


def test_an_echoed_prompt_is_not_billed_twice(tmp_path: Path) -> None:
    answer = {"choices": [{"index": 0, "text": "Once upon a time there was"}]}
    house = House(JsonApp(json.dumps(answer).encode()), tmp_path)
    body = {"model": "inf-chat-v1", "prompt": "Once upon a time", "echo": True}
    serve(house, body, path="/v1/completions")
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (4, 2)
    assert record["basis"] == "estimated"


def test_of_an_echo_that_was_asked_for_only_what_is_there_is_no_output(tmp_path: Path) -> None:
    prompt = "Once upon a time there was a bank that kept its ledger on paper. "
    made = " word" * 40
    for number, (texts, outputs) in enumerate(
        [([made], 40), ([prompt + made], 40), ([prompt + made, prompt + made], 80)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        choices = [{"index": index, "text": text} for index, text in enumerate(texts)]
        house = House(JsonApp(json.dumps({"choices": choices}).encode()), folder)
        body = {"model": "inf-chat-v1", "prompt": prompt, "echo": True, "n": len(texts)}
        serve(house, body, path="/v1/completions")
        assert house.record["output_tokens"] == outputs


@pytest.mark.parametrize("path", ["/generate", "/rerank", "/classify"])
def test_a_method_that_a_server_answers_as_a_post_is_metered_as_one(
    path: str, tmp_path: Path
) -> None:
    answer = {"text": " word" * 7, "meta_info": {"prompt_tokens": 3, "completion_tokens": 7},
              "usage": {"prompt_tokens": 3, "completion_tokens": 7}}  # fmt: skip
    house = House(JsonApp(answer), tmp_path)
    asked = {"model": "inf-chat-v1", "text": "Say it", "query": "q", "input": "i"}
    assert serve(house, asked, path=path, method="PUT").status == 200
    assert house.record["input_tokens"] == 3


def test_anthropic_paths_are_refused_in_anthropics_words(tmp_path: Path) -> None:
    house = House(JsonApp(b"{}"), tmp_path, accounts=ACCOUNTS)
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
    refused = serve(house, body, path="/v1/messages", times=2)
    assert refused.status == 429
    assert set(refused.json) == {"type", "error"}
    assert set(refused.json["error"]) == {"type", "message"}
    assert refused.json["error"]["type"] == "rate_limit_error"
    headers = refused.headers
    assert headers["anthropic-ratelimit-requests-limit"] == "1"
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert headers["anthropic-ratelimit-tokens-limit"] == "100000"
    assert headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert headers["x-ratelimit-limit-requests"] == "1"
    assert headers["request-id"]


class Broken:
    """A ledger that takes nothing."""

    def settle(self, event: Any) -> Any:
        async def failing() -> None:
            raise LedgerUnavailable("the disk is full")

        return failing()

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize(
    ("path", "media", "last", "error"),
    [
        ("/v1/chat/completions", EVENTS, event("[DONE]"), b'data: {"error":'),
        (
            "/v1/messages",
            EVENTS,
            b'event: message_stop\ndata: {"type": "message_stop"}\n\n',
            b'event: error\ndata: {"type":"error","error":{"type":"api_error",',
        ),
        ("/api/chat", LINES, b'{"done": true, "eval_count": 1}\n', b'{"error":"The call'),
    ],
)
def test_a_stream_that_cannot_be_recorded_ends_with_an_error_in_its_dialect(
    path: str, media: str, last: bytes, error: bytes, tmp_path: Path
) -> None:
    from inf_middleware import CostLedger

    app = CostLedger(
        Sends([last], media),
        ledger=Broken(),
        settle_timeout_s=0,
        on_ledger_error="refuse",
        accounts={"sk-five": "Tier5"},
    )
    answered = asyncio.run(post(app, STREAM, key="sk-five", path=path))
    assert answered.body.startswith(error)
    assert last not in answered.body


def test_each_call_is_told_to_on_usage_once(tmp_path: Path) -> None:
    heard: list[Any] = []

    async def on_usage(usage: Any, call: Any) -> None:
        heard.append((call.account.id, call.model, usage.total_tokens, usage.basis))

    for number, order in enumerate(ORDERS):
        (tmp_path / str(number)).mkdir()
        house = House(
            JsonApp(completion(usage=usage_of(9, 2))),
            tmp_path / str(number),
            order=order,
            accounts=ACCOUNTS,
            on_usage=on_usage,
        )
        serve(house, CHAT, times=3)  # the second and third are refused
    assert heard == [("acme", "inf-chat-v1", 11, "reported")] * len(ORDERS)


def test_an_on_usage_that_fails_fails_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def on_usage(usage: Any, call: Any) -> None:
        raise ValueError("no such metric")

    house = House(JsonApp(completion(usage=usage_of(9, 2))), tmp_path, on_usage=on_usage)
    assert serve(house, CHAT).status == 200
    assert house.in_progress("acme") == 0
    assert "no such metric" in caplog.text
    assert len(house.records) == 1


@pytest.mark.parametrize(("order", "between"), cases())
def test_a_dialect_of_the_users_own_is_metered(order: Any, between: Any, tmp_path: Path) -> None:
    mine = Dialect(
        name="mine",
        paths=("/ask",),
        texts=("question",),
        output_cap=("cap",),
        answers=Answers(usage=(UsageAt(at="", input="in", output="out"),), text=("reply",)),
    )
    app = JsonApp(b'{"reply": "Yes", "in": 3, "out": 4}')
    house = House(app, tmp_path, order=order, between=between, dialects=[mine])
    answered = serve(house, {"question": "Is it so?", "cap": 40}, path="/v1/ask")
    assert (house.record["input_tokens"], house.record["output_tokens"]) == (3, 4)
    if between is None:
        assert 768_000 - int(answered.headers["x-ratelimit-remaining-tokens"]) == 4 + 40


def test_counter_overhead_and_assumed_output_are_by_model(tmp_path: Path) -> None:
    profile = Profile(per_message=10, per_reply=100)
    house = House(
        JsonApp(completion("two words")),
        tmp_path,
        counter={"wordy/*": Counting(lambda text: len(text.split()), profile), "flat": lambda _: 7},
        assumed_output_tokens={"wordy/*": 50, "*": 60},
    )

    async def go() -> list[int]:
        left = []
        for model in ("wordy/a", "flat", "other"):
            body = {**CHAT, "model": model}
            answered = await post(house.app, body, key="sk-five")
            left.append(int(answered.headers["x-ratelimit-remaining-tokens"]))
        await house.close()
        return left

    left = asyncio.run(go())
    counts = [(r["input_tokens"], r["output_tokens"]) for r in house.records]
    assert counts[:2] == [(100 + 10 + 1 + 4, 2), (2 * 7 + 6, 7)]
    assert left[0] == 768_000 - 115 - 50
    assert left[0] - left[1] == 117 - 165 + 20 + 60


def test_a_post_that_tells_nothing_is_recorded_with_zero_tokens_and_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = House(JsonApp(b'{"ok": true}'), tmp_path)
    with caplog.at_level(logging.WARNING):
        serve(house, {"model": "m"}, path="/custom", times=3)
    assert [(r["input_tokens"], r["amount_nano"]) for r in house.records] == [(0, 0)] * 3
    assert {r["basis"] for r in house.records} == {"estimated"}
    assert caplog.text.count("tell no usage") == 1


def test_multipart_passes_unread(tmp_path: Path) -> None:
    app = JsonApp(b'{"usage": {"input_tokens": 3, "output_tokens": 4}}')
    house = House(app, tmp_path)
    pieces = [b"--b\r\n", b"x" * 100, b"--b--"]
    headers = [("content-type", "multipart/form-data; boundary=b")]

    async def go() -> None:
        from tests.driver import scope_of

        scope = scope_of("/v1/audio/transcriptions", key="sk-five")
        scope["headers"] = [h for h in scope["headers"] if h[0] != b"content-type"]
        scope["headers"] += [(name.encode(), value.encode()) for name, value in headers]
        queue = [
            {"type": "http.request", "body": piece, "more_body": piece != pieces[-1]}
            for piece in pieces
        ]
        asked: list[int] = []

        async def receive() -> Any:
            asked.append(len(app.bodies))
            return queue.pop(0)

        async def send(message: Any) -> None:
            pass

        await house.app(scope, receive, send)
        await house.close()

    asyncio.run(go())
    assert app.bodies == [b"".join(pieces)]
    assert (house.record["input_tokens"], house.record["output_tokens"]) == (3, 4)
