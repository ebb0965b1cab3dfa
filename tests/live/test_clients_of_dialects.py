"""The official clients of three APIs, unmodified, against small apps that speak them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from inf_middleware import Account, CostLedger, Tier, TierLimiter, TokenMeter
from tests.kit import records_of
from tests.servers import serving
from tests.wire.fixtures import EXCHANGES, LINES, Exchange

ACCOUNTS = {
    "sk-one": Account("acme", tier="Tier5"),
    "sk-tiny": Account("tiny", tier=Tier("Tiny", 1, 1, 100_000)),
    "sk-small": Account("small", tier=Tier("Small", 1, 10, 5)),
}
BY_PATH: dict[str, Exchange] = {one.path: one for one in EXCHANGES if one.name != "sglang-batch"}
FILLED: dict[str, dict[str, Any]] = {
    "/v1/messages": {"role": "assistant", "stop_reason": "end_turn", "stop_sequence": None},
    "/v1/embeddings": {"object": "list"},
}


async def answer(request: Request) -> Response:
    exchange = BY_PATH[request.url.path]
    body = await request.json()
    streams = body.get("stream", exchange.media == LINES)
    if exchange.stream and streams:
        pieces = exchange.stream.splitlines(keepends=True)
        return StreamingResponse(iter(pieces), media_type=exchange.media)
    return JSONResponse({**exchange.answer, **FILLED.get(exchange.path, {})})


class Service:
    def __init__(self, tmp_path: Path) -> None:
        self.ledger = tmp_path / "ledger.db"
        self.app = Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])
        self.app.add_middleware(TokenMeter)
        self.app.add_middleware(TierLimiter, accounts=ACCOUNTS)
        self.app.add_middleware(CostLedger, ledger=f"sqlite:///{self.ledger}")
        self.url = ""

    def openai(self, key: str = "sk-one") -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)

    def anthropic(self, key: str = "sk-one") -> anthropic.Anthropic:
        return anthropic.Anthropic(base_url=self.url, api_key=key, max_retries=0)

    def ollama(self, key: str = "sk-one") -> ollama.Client:
        return ollama.Client(host=self.url, headers={"Authorization": f"Bearer {key}"})

    def told(self) -> list[tuple[int, int, str]]:
        return [
            (record["input_tokens"], record["output_tokens"], record["basis"])
            for record in records_of(self.ledger)
        ]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(tmp_path)
    with serving(service.app) as url:
        service.url = url
        yield service


MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def test_anthropic_whole_and_streamed(service: Service) -> None:
    with service.anthropic() as client:
        message = client.messages.create(model="m", max_tokens=40, messages=MESSAGES)
        events = list(
            client.messages.create(model="m", max_tokens=40, messages=MESSAGES, stream=True)
        )
    text = "".join(
        event.delta.text
        for event in events
        if event.type == "content_block_delta" and event.delta.type == "text_delta"
    )
    assert message.usage.output_tokens == 42
    assert text == "Hello"
    assert service.told() == [(17, 42, "reported")] * 2


def test_anthropic_understands_our_refusals(service: Service) -> None:
    with service.anthropic("sk-tiny") as client:
        client.messages.create(model="m", max_tokens=40, messages=MESSAGES)
        with pytest.raises(anthropic.RateLimitError) as refused:
            client.messages.create(model="m", max_tokens=40, messages=MESSAGES)
    assert "Level Tiny allows 1 request per minute" in str(refused.value)
    headers = refused.value.response.headers
    assert headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert refused.value.request_id == headers["request-id"]
    with (
        service.anthropic("sk-unknown") as client,
        pytest.raises(anthropic.AuthenticationError, match="unknown"),
    ):
        client.messages.create(model="m", max_tokens=40, messages=MESSAGES)
    with (
        service.anthropic("sk-small") as client,
        pytest.raises(anthropic.BadRequestError, match="level Small allows 5 tokens"),
    ):
        client.messages.create(model="m", max_tokens=40, messages=MESSAGES)


def test_ollama_whole_and_streamed(service: Service) -> None:
    with service.ollama() as client:
        whole = client.chat(model="m", messages=MESSAGES)
        parts = list(client.chat(model="m", messages=MESSAGES, stream=True))
        made = client.generate(model="m", prompt="Hi")
        embedded = client.embed(model="m", input=["one", "two"])
    assert whole.message.content == "Hello"
    assert "".join(part.message.content or "" for part in parts) == "Hello"
    assert parts[-1].eval_count == 7
    assert made.response == "Hello"
    assert embedded.prompt_eval_count == 4
    assert service.told() == [
        (12, 7, "reported"),
        (12, 7, "reported"),
        (5, 3, "reported"),
        (4, 0, "reported"),
    ]


def test_ollama_understands_our_refusals(service: Service) -> None:
    with service.ollama("sk-tiny") as client:
        client.chat(model="m", messages=MESSAGES)
        with pytest.raises(ollama.ResponseError, match="Level Tiny allows 1 request") as refused:
            client.chat(model="m", messages=MESSAGES)
    assert refused.value.status_code == 429


def test_openai_completions_responses_and_embeddings(service: Service) -> None:
    with service.openai() as client:
        made = client.completions.create(model="m", prompt=["Once", "Twice"], n=2, max_tokens=5)
        stream = client.completions.create(model="m", prompt="Once", n=4, stream=True)
        texts = [chunk.choices[0].text for chunk in stream]
        response = client.responses.create(model="m", input="Hi")
        events = list(client.responses.create(model="m", input="Hi", stream=True))
        embedded = client.embeddings.create(model="m", input=[[1, 2, 3], [4, 5]])
    assert [choice.text for choice in made.choices] == texts == ["t0", "t1", "t2", "t3"]
    assert response.usage is not None
    assert response.usage.output_tokens == 12
    assert events[-1].type == "response.incomplete"
    assert embedded.usage.prompt_tokens == 5
    assert service.told() == [
        (4, 20, "reported"),
        (4, 20, "reported"),
        (15, 12, "reported"),
        (15, 12, "reported"),
        (5, 0, "reported"),
    ]


def test_openai_gets_context_errors_as_bad_requests(service: Service) -> None:
    with (
        service.openai() as client,
        pytest.raises(openai.BadRequestError) as refused,
    ):
        client.chat.completions.create(model="inf-chat-v1", messages=MESSAGES, max_tokens=40_000)
    assert refused.value.code == "context_length_exceeded"
    assert json.loads(refused.value.response.text)["type"] == "error"
