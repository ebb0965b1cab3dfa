"""Promise 5: no usage in the answer never means zero, and no false bill."""

import asyncio
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from inf_middleware import current_call
from inf_middleware.tokens.encodings import load_encoding
from tests.apps import JsonApp, StreamApp, completion, delta, event, usage_of
from tests.driver import post
from tests.kit import CHAT, STREAM, House, records_of

TEXT = "The ledger is kept in nano-CNY. 账本以纳元计。"


def tokens(text: str) -> int:
    return len(load_encoding("o200k_base").encode_ordinary(text))


# By OpenAI's published rule: 3 for the message, its role and content, 3 for the reply.
INPUT = 3 + tokens("user") + tokens(CHAT["messages"][0]["content"]) + 3


def record_of(app: Any, tmp_path: Path, body: Any = CHAT) -> dict[str, Any]:
    house = House(app, tmp_path)

    async def go() -> None:
        try:
            await post(house.app, body, key="sk-five")
        finally:
            await house.close()

    asyncio.run(go())
    return house.record


def test_a_json_answer_without_usage_is_counted_from_its_text(tmp_path: Path) -> None:
    record = record_of(JsonApp(completion(TEXT)), tmp_path)
    assert (record["input_tokens"], record["output_tokens"]) == (INPUT, tokens(TEXT))
    assert record["basis"] == "counted"
    assert record["amount_nano"] == (INPUT + tokens(TEXT)) * 10_000


def test_a_stream_without_usage_is_counted_on_the_joined_text(tmp_path: Path) -> None:
    pieces = [event(delta(character)) for character in TEXT] + [event("[DONE]")]
    record = record_of(StreamApp(pieces), tmp_path, STREAM)
    assert (record["input_tokens"], record["output_tokens"]) == (INPUT, tokens(TEXT))
    assert record["basis"] == "counted"


@pytest.mark.parametrize("told", [(0, 5), (5, 0)])
def test_an_explicit_zero_is_zero(told: tuple[int, int], tmp_path: Path) -> None:
    record = record_of(JsonApp(completion(TEXT, usage=usage_of(*told))), tmp_path)
    assert (record["input_tokens"], record["output_tokens"]) == told
    assert record["basis"] == "reported"


def test_a_server_that_reports_zeros_because_it_counts_nothing_is_not_free(tmp_path: Path) -> None:
    zeros = {**delta("", finish="stop"), "usage": usage_of(0, 0)}
    pieces = [*(event(delta(character)) for character in TEXT), event(zeros), event("[DONE]")]
    for app, body in (
        (JsonApp(completion(TEXT, usage=usage_of(0, 0))), CHAT),
        (StreamApp(pieces), STREAM),
    ):
        record = record_of(app, tmp_path, body)
        assert (record["input_tokens"], record["output_tokens"]) == (INPUT, tokens(TEXT))
        assert record["basis"] == "counted"
        (tmp_path / "ledger.db").unlink()


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": None}, {"prompt_tokens": -5, "completion_tokens": -1}, "x", 7],
)
def test_a_usage_that_tells_nothing_is_no_report(usage: Any, tmp_path: Path) -> None:
    answer = {**completion(TEXT), "usage": usage}
    assert record_of(JsonApp(answer), tmp_path)["basis"] == "counted"


@pytest.mark.parametrize("status", [400, 404, 422, 429, 500, 503])
def test_a_request_that_failed_pays_nothing_and_is_recorded(status: int, tmp_path: Path) -> None:
    failed = {"error": {"message": "no"}, "usage": usage_of(5, 5)}
    record = record_of(JsonApp(failed, status=status), tmp_path)
    assert (record["amount_nano"], record["outcome"]) == (0, "upstream_error")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_who_is_sent_to_another_place_pays_there_only(status: int, tmp_path: Path) -> None:
    record = record_of(JsonApp(b"", status=status), tmp_path)
    assert (record["amount_nano"], record["outcome"]) == (0, "upstream_error")


def test_an_answer_that_says_it_has_no_content_costs_nothing(tmp_path: Path) -> None:
    record = record_of(JsonApp(b"", status=204), tmp_path)
    assert (record["amount_nano"], record["outcome"]) == (0, "complete")


def test_a_slash_too_many_is_billed_once_and_its_key_is_free_for_the_other_place(
    tmp_path: Path,
) -> None:
    async def answer(_: Request) -> JSONResponse:
        return JSONResponse(completion(TEXT, usage=usage_of(9, 4)))

    routes = [Route("/v1/chat/completions", answer, methods=["POST"])]
    house = House(Starlette(routes=routes), tmp_path)
    headers = [("idempotency-key", "k1")]

    async def go() -> None:
        sent_on = await post(
            house.app, CHAT, key="sk-five", path="/v1/chat/completions/", headers=headers
        )
        assert sent_on.status == 307
        assert (await post(house.app, CHAT, key="sk-five", headers=headers)).status == 200
        await house.close()

    asyncio.run(go())
    assert [record["input_tokens"] for record in house.records] == [0, 9]


def test_an_app_that_raises_before_it_answers_pays_nothing(tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("bad weights")

    house = House(app, tmp_path)

    async def go() -> None:
        with pytest.raises(ValueError, match="bad weights"):
            await post(house.app, CHAT, key="sk-five")
        assert house.in_progress("umbrella") == 0
        await house.close()

    asyncio.run(go())
    assert (house.record["amount_nano"], house.record["outcome"]) == (0, "upstream_error")


@pytest.mark.parametrize("kind", [b"application/json", b"text/event-stream"])
def test_an_app_that_raises_before_its_first_token_pays_nothing(
    kind: bytes, tmp_path: Path
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        raise ValueError("bad weights")

    with pytest.raises(ValueError, match="bad weights"):
        record_of(app, tmp_path)
    (record,) = records_of(tmp_path / "ledger.db")
    assert (record["amount_nano"], record["basis"]) == (0, "counted")
    assert record["outcome"] == "upstream_error"


def test_an_app_that_raises_within_its_answer_pays_for_what_it_was_asked(tmp_path: Path) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-length", b"99")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"choices": [', "more_body": True})
        raise ValueError("bad weights")

    with pytest.raises(ValueError, match="bad weights"):
        record_of(app, tmp_path)
    (record,) = records_of(tmp_path / "ledger.db")
    assert (record["input_tokens"], record["basis"]) == (INPUT, "estimated")


def test_an_error_event_before_the_first_token_pays_nothing_and_after_it_what_was_sent(
    tmp_path: Path,
) -> None:
    error = event({"error": {"message": "the engine died", "code": 500}})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    early = record_of(StreamApp([error, event("[DONE]")]), tmp_path / "a", STREAM)
    assert (early["amount_nano"], early["outcome"]) == (0, "upstream_error")
    late = StreamApp([event(delta(TEXT)), error, event("[DONE]")])
    record = record_of(late, tmp_path / "b", STREAM)
    assert (record["output_tokens"], record["outcome"]) == (tokens(TEXT), "upstream_error")


def test_an_empty_200_is_not_zero_tokens(tmp_path: Path) -> None:
    record = record_of(JsonApp(b""), tmp_path)
    assert (record["input_tokens"], record["basis"]) == (INPUT, "estimated")


def test_a_compressed_json_answer_is_read_and_passed_on_compressed(tmp_path: Path) -> None:
    packed = gzip.compress(json.dumps(completion(TEXT, usage=usage_of(8, 9))).encode())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for at in range(0, len(packed), 7):
            piece = packed[at : at + 7]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    house = House(app, tmp_path)

    async def go() -> bytes:
        answered = await post(house.app, CHAT, key="sk-five")
        await house.close()
        return answered.body

    assert asyncio.run(go()) == packed
    assert (house.record["input_tokens"], house.record["output_tokens"]) == (8, 9)


def test_reasoning_and_tool_calls_are_output_too(tmp_path: Path) -> None:
    message = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Let me think about the weather.",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "杭州"}'},
            }
        ],
    }
    answer = completion()
    answer["choices"][0]["message"] = message
    record = record_of(JsonApp(answer), tmp_path)
    assert record["output_tokens"] >= tokens("Let me think about the weather.") + tokens(
        '{"city": "杭州"}'
    )


def test_a_handler_may_report_the_usage_itself(tmp_path: Path) -> None:
    inner = JsonApp(completion(TEXT))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        call = current_call(scope)
        assert call.account is not None
        assert call.tier is not None
        assert (call.account.id, call.tier.name, call.model) == (
            "umbrella",
            "Tier5",
            "inf-chat-v1",
        )
        assert call.usage is None
        with pytest.raises(ValueError, match="output_tokens is -1"):
            call.report(input_tokens=1, output_tokens=-1)
        call.report(input_tokens=100, output_tokens=200)
        await inner(scope, receive, send)

    record = record_of(app, tmp_path)
    assert (record["input_tokens"], record["output_tokens"]) == (100, 200)
    assert record["basis"] == "reported"
