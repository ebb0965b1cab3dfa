"""What the caller sees: exact times, the forms of OpenAI, a message that says it all."""

import json
import math
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.domain.limits import LimitCode, Refusal, Standing, Standings
from inf_middleware.domain.rates import WINDOW_S_MAX
from inf_middleware.wire import answers
from inf_middleware.wire.dialects.openai_chat import CHAT

STANDINGS = Standings(Standing(4, 1, 59.5), Standing(32_000, 0, 3_661.25), Standing(1, 1, 0.0))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (0.0005, "0.001s"),
        (0.006, "0.006s"),
        (59.5, "59.5s"),
        (59.9999, "1m0s"),
        (60.0, "1m0s"),
        (90.25, "1m30.25s"),
        (3_661.25, "1h1m1.25s"),
        (86_400.0, "24h0m0s"),
    ],
)
def test_a_time_is_written_as_openai_does(seconds: float, text: str) -> None:
    assert answers.duration(seconds) == text


def test_the_limits_stand_in_the_headers() -> None:
    headers = dict(answers.limit_headers(STANDINGS, CHAT, time.time_ns))
    assert headers == {
        b"x-ratelimit-limit-requests": b"4",
        b"x-ratelimit-remaining-requests": b"1",
        b"x-ratelimit-reset-requests": b"59.5s",
        b"x-ratelimit-limit-tokens": b"32000",
        b"x-ratelimit-remaining-tokens": b"0",
        b"x-ratelimit-reset-tokens": b"1h1m1.25s",
        b"x-ratelimit-limit-concurrency": b"1",
        b"x-ratelimit-remaining-concurrency": b"1",
    }


@given(st.integers(0, 60_000_000))
def test_waiting_as_told_is_always_long_enough_and_never_over_a_minute(micros: int) -> None:
    seconds = micros / 1e6
    headers = dict(answers.retry_headers(seconds))
    whole, ms = int(headers[b"retry-after"]), int(headers[b"retry-after-ms"])
    assert whole * 1_000_000 >= micros
    assert ms * 1_000 >= micros
    assert 1 <= whole <= 60
    assert 1 <= ms <= 60_000
    assert ms == max(math.ceil(micros / 1000), 1)


def refusal(code: LimitCode, **more: Any) -> Refusal:
    fields: dict[str, Any] = {
        "limit": 4,
        "used": 4,
        "requested": 1,
        "window_s": 60.0,
        "retry_after_s": 41.7235,
        **more,
    }
    return Refusal(code, **fields, standings=STANDINGS)


def test_the_message_names_level_limit_used_requested_and_when() -> None:
    assert answers.limit_message("Free", refusal("requests_limit_exceeded")) == (
        "Level Free allows 4 requests per minute: 4 used, 1 requested. Try again in 41.724 s."
    )
    tokens = refusal("tokens_limit_exceeded", limit=10**7, used=9_999_000, requested=32_000)
    tokens = refusal(
        "tokens_limit_exceeded", limit=10**7, used=9_999_000, requested=32_000, window_s=86_400.0
    )
    assert answers.limit_message("Tier1", tokens).startswith(
        "Level Tier1 allows 10,000,000 tokens per day: 9,999,000 used, 32,000 requested."
    )
    full = refusal("concurrency_limit_exceeded", limit=1, used=1, window_s=0.0, retry_after_s=1.0)
    assert answers.limit_message("Free", full) == (
        "Level Free allows 1 request in progress at a time: 1 used, 1 requested. Nobody knows"
        " when one ends; as an estimate, try again in 1 s."
    )


@given(st.integers(0, int(WINDOW_S_MAX) * 1_000_000))
def test_the_message_tells_a_time_of_any_length_in_full_and_never_too_little(micros: int) -> None:
    told = refusal("requests_limit_exceeded", retry_after_s=micros / 1e6)
    written = re.search(r"Try again in ((?:0|[1-9]\d*)(?:\.\d{0,2}[1-9])?) s\.$", told_of(told))
    assert written is not None
    assert round(float(written[1]) * 1000) == math.ceil(micros / 1000)


@given(st.integers(0, int(WINDOW_S_MAX) * 1_000_000))
def test_a_time_is_written_in_full_in_the_headers_too(micros: int) -> None:
    text = answers.duration(micros / 1e6)
    written = re.fullmatch(r"(?:(?:(\d+)h)?(\d+)m)?(\d+(?:\.\d{0,2}[1-9])?)s", text)
    assert written is not None
    hours, minutes, seconds = (float(part or 0) for part in written.groups())
    assert round((hours * 3600 + minutes * 60 + seconds) * 1000) == math.ceil(micros / 1000)


@given(st.integers(1, int(WINDOW_S_MAX)))
def test_the_message_names_a_window_of_any_length_in_full(window_s: int) -> None:
    told = told_of(refusal("requests_limit_exceeded", window_s=float(window_s)))
    unit = answers.UNITS.get(window_s) or f"{window_s} seconds"
    assert told.startswith(f"Level Free allows 4 requests per {unit}: ")


def told_of(refusal: Refusal) -> str:
    return answers.limit_message("Free", refusal)


@pytest.mark.parametrize(
    ("status", "kind", "retry"),
    [
        (400, "invalid_request_error", False),
        (401, "authentication_error", False),
        (402, "billing_error", False),
        (403, "permission_error", False),
        (404, "invalid_request_error", False),
        (408, "invalid_request_error", False),
        (413, "invalid_request_error", False),
        (429, "rate_limit_error", True),
        (503, "server_error", True),
    ],
)
def test_what_trying_again_does_not_cure_says_so(status: int, kind: str, retry: bool) -> None:
    got, headers, body = answers.error_response(
        CHAT, status=status, code="a_code", message="Words “quoted”.", request_id="r-1"
    )
    assert got == status
    named = dict(headers)
    assert named[b"x-request-id"] == named[b"request-id"] == b"r-1"
    assert named[b"content-length"] == str(len(body)).encode()
    assert (b"x-should-retry" not in named) is retry
    assert json.loads(body) == {
        "type": "error",
        "error": {"message": "Words “quoted”.", "type": kind, "param": None, "code": "a_code"},
    }
