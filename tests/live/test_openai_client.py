"""The official `openai` client, unmodified, against uvicorn."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from examples.model_app import build_app
from inf_middleware import Account, CostLedger, TierLimiter, TokenMeter
from tests.kit import lines_of, records_of
from tests.servers import serving

ACCOUNTS = {
    "sk-free": Account("free-riders", tier="Free"),
    "sk-one": Account("acme", recharged="500"),
}
MESSAGES: Any = [{"role": "user", "content": "Tell me about tea and the harbour."}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


class Service:
    def __init__(self, tmp_path: Path) -> None:
        self.ledger = tmp_path / "ledger.db"
        self.events = tmp_path / "events.jsonl"
        self.model = build_app()
        self.model.add_middleware(TokenMeter)
        self.model.add_middleware(TierLimiter, accounts=ACCOUNTS)
        self.model.add_middleware(
            CostLedger, ledger=f"sqlite:///{self.ledger}", sinks={"file": f"jsonl:{self.events}"}
        )
        self.url = ""

    def client(self, key: str = "sk-one", **more: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, **{"max_retries": 0, **more})

    @property
    def record(self) -> dict[str, Any]:
        (record,) = records_of(self.ledger)
        return record

    @property
    def served(self) -> dict[str, Any]:
        (served,) = self.model.state.log
        return dict(served)

    def agrees(self) -> None:
        """What the app itself logged as usage is what the ledger holds."""
        record, served = self.record, self.served
        assert record["input_tokens"] == served["prompt_tokens"]
        assert record["output_tokens"] == served["completion_tokens"]
        assert record["basis"] == "reported"
        total = served["prompt_tokens"] + served["completion_tokens"]
        assert record["amount_nano"] == total * 10_000


@pytest.fixture(params=["h11", "httptools"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    with serving(service.model, http=request.param) as service.url:
        yield service


def test_an_answer_says_what_the_ledger_has(service: Service) -> None:
    with service.client() as client:
        answer = client.chat.completions.create(
            model="inf-chat-v1", messages=MESSAGES, max_tokens=30
        )
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == service.record["output_tokens"]
    service.agrees()


def test_a_stream_whose_client_did_not_ask_for_usage_shows_none_and_is_billed_by_it(
    service: Service,
) -> None:
    with service.client() as client:
        chunks = list(
            client.chat.completions.create(
                model="inf-chat-v1", messages=MESSAGES, max_tokens=30, stream=True
            )
        )
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    service.agrees()


def test_a_stream_whose_client_asked_for_usage_shows_what_is_billed(service: Service) -> None:
    with service.client() as client:
        chunks = list(
            client.chat.completions.create(
                model="inf-chat-v1",
                messages=MESSAGES,
                max_tokens=30,
                stream=True,
                stream_options={"include_usage": True},
            )
        )
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == service.record["output_tokens"]
    service.agrees()


def test_two_choices_are_one_bill(service: Service) -> None:
    with service.client() as client:
        answer = client.chat.completions.create(
            model="inf-chat-v1", messages=MESSAGES, max_tokens=20, n=2
        )
        assert len(answer.choices) == 2
    service.agrees()


def test_a_tool_call_reaches_the_client_and_is_billed(service: Service) -> None:
    asked: Any = [{"role": "user", "content": "Use get_weather for Hangzhou."}]
    with service.client() as client:
        answer = client.chat.completions.create(
            model="inf-chat-v1", messages=asked, tools=[TOOL], max_tokens=50
        )
    calls = answer.choices[0].message.tool_calls
    assert calls
    assert calls[0].type == "function"
    assert calls[0].function.name == "get_weather"
    service.agrees()


def test_an_error_of_the_app_reaches_the_client_and_costs_nothing(service: Service) -> None:
    with service.client() as client, pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="inf-chat-v1", messages=[])
    assert (service.record["amount_nano"], service.record["outcome"]) == (0, "upstream_error")


def test_a_raw_response_names_the_limits_and_the_call(service: Service) -> None:
    with service.client() as client:
        raw = client.chat.completions.with_raw_response.create(
            model="inf-chat-v1", messages=MESSAGES, max_tokens=10
        )
    assert raw.headers["x-ratelimit-limit-requests"] == "20"
    assert raw.headers["x-ratelimit-remaining-requests"] == "19"
    assert raw.headers["x-ratelimit-limit-tokens"] == "128000"
    assert raw.headers["x-request-id"] == raw.request_id == service.record["request_id"]


def test_a_refusal_is_a_rate_limit_error_with_its_reason(service: Service) -> None:
    with service.client("sk-free") as client:
        for _ in range(4):
            client.chat.completions.create(model="inf-chat-v1", messages=MESSAGES, max_tokens=5)
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="inf-chat-v1", messages=MESSAGES, max_tokens=5)
    error = caught.value
    assert error.code == "requests_limit_exceeded"
    assert error.type == "rate_limit_error"
    for words in ("Free", "4 requests per minute", "4 used", "1 requested", "ry again in"):
        assert words in error.message
    assert 0 < int(error.response.headers["retry-after-ms"]) <= 60_000
    assert error.request_id == error.response.headers["x-request-id"]


def test_a_sequential_client_of_concurrency_1_is_never_refused_for_its_own_last_request(
    tmp_path: Path,
) -> None:
    service = Service(tmp_path)
    ACCOUNTS["sk-seq"] = Account("sequential", tier=_tier("Seq", concurrency=1, per_minute=100_000))
    with serving(service.model) as service.url, service.client("sk-seq") as client:
        for number in range(100):
            stream = bool(number % 2)
            answer = client.chat.completions.create(
                model="inf-chat-v1", messages=MESSAGES, max_tokens=3, stream=stream
            )
            if stream:
                list(answer)
    assert len(records_of(service.ledger)) == 100


def _tier(name: str, *, concurrency: int, per_minute: int) -> Any:
    from inf_middleware import Tier

    return Tier(name, concurrency, per_minute, per_minute * 1_000)


def test_an_unknown_key_is_an_authentication_error_and_makes_no_record(service: Service) -> None:
    with service.client("sk-nobody") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.chat.completions.create(model="inf-chat-v1", messages=MESSAGES)
    assert caught.value.code == "invalid_api_key"
    assert not service.ledger.exists() or records_of(service.ledger) == []
    assert service.model.state.log == []


def test_every_record_reaches_the_file_as_one_event(service: Service) -> None:
    with service.client() as client:
        for _ in range(5):
            client.chat.completions.create(model="inf-chat-v1", messages=MESSAGES, max_tokens=5)
    records = {record["request_id"]: record for record in records_of(service.ledger)}
    deadline = time.monotonic() + 10
    while not service.events.exists() or len(lines_of(service.events)) < 5:
        assert time.monotonic() < deadline, "the events did not arrive"
        time.sleep(0.02)
    events = lines_of(service.events)
    assert [event["id"] for event in events] == list(records)
    for event in events:
        record = records[event["id"]]
        assert event["data"]["amount_nano"] == str(record["amount_nano"])
        assert event["subject"] == "acme"
