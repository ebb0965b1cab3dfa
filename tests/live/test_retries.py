"""The official clients, unmodified, retry a refusal just once, at the right moment, and succeed."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from inf_middleware import Account, CostLedger, Tier, TierLimiter, TokenMeter
from tests.apps import JsonApp, completion, usage_of
from tests.kit import Closing
from tests.servers import serving

_FAR = 10**9
ACCOUNTS = {
    "sk-requests": Account("one", tier=Tier("One", _FAR, _FAR, _FAR, requests=["1/1 second"])),
    "sk-tokens": Account("few", tier=Tier("Few", _FAR, _FAR, _FAR, tokens=["1000/1 second"])),
    "sk-slot": Account("slot", tier=Tier("Slot", 1, _FAR, _FAR)),
}
# With its answer a request has used a second's tokens whole, in any dialect.
OUTPUT_TOKENS = 1_000
HOLD_S = 0.5  # shorter than the second that a refusal for concurrency asks to wait

ANSWERS = {
    "openai": completion(usage=usage_of(0, OUTPUT_TOKENS)),
    "anthropic": {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "inf-chat-v1",
        "content": [{"type": "text", "text": "Hello there."}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": OUTPUT_TOKENS},
    },
}
CAP = 900  # with the input it fits a second's tokens

Send = Callable[[], Awaitable[object]]


class Slow:
    """Works for a while before it answers."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self.hold_s = 0.0
        self.begun = threading.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun.set()
        await asyncio.sleep(self.hold_s)
        await self._app(scope, receive, send)


class Watched:
    """Outside of ours: what was answered, and when."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.statuses: list[int] = []
        self.told_until: list[float] = []  # when each refusal said to come back
        self.retried_at: list[float] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if dict(scope["headers"]).get(b"x-stainless-retry-count", b"0") != b"0":
            self.retried_at.append(time.monotonic())

        async def watching(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.statuses.append(message["status"])
                told_ms = dict(message["headers"]).get(b"retry-after-ms")
                if told_ms is not None:
                    self.told_until.append(time.monotonic() + int(told_ms) / 1000)
            await send(message)

        await self.app(scope, receive, watching)


class Service:
    """A server for one kind of client, and that client."""

    def __init__(self, kind: str, tmp_path: Path) -> None:
        self._kind = kind
        self.model = Slow(JsonApp(ANSWERS[kind]))
        app: Any = CostLedger(Closing(self.model), ledger=f"sqlite:///{tmp_path}/ledger.db")
        self.watched = Watched(TokenMeter(TierLimiter(app, accounts=ACCOUNTS)))
        self.url = ""

    def sender(self, key: str) -> tuple[Send, Any]:
        """A client with its defaults, and what sends one request of it."""
        ask: dict[str, Any] = {
            "model": "inf-chat-v1",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": CAP,
        }
        if self._kind == "openai":
            of_openai = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key)
            return lambda: of_openai.chat.completions.create(**ask), of_openai
        of_anthropic = anthropic.AsyncAnthropic(base_url=self.url, auth_token=key, api_key=None)
        return lambda: of_anthropic.messages.create(**ask), of_anthropic

    def run(self, key: str, story: Callable[[Send], Awaitable[None]]) -> None:
        async def running() -> None:
            send, client = self.sender(key)
            async with client:
                await story(send)

        asyncio.run(running())


@pytest.fixture(params=ANSWERS)
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    service = Service(request.param, tmp_path)
    with serving(service.watched) as service.url:
        yield service


@pytest.mark.parametrize("key", ["sk-requests", "sk-tokens"])
def test_refused_for_a_rate_it_retries_once_and_not_too_early(service: Service, key: str) -> None:
    async def story(send: Send) -> None:
        await send()
        await send()

    service.run(key, story)
    watched = service.watched
    assert watched.statuses == [200, 429, 200]
    assert watched.retried_at[0] >= watched.told_until[0]


def test_refused_for_concurrency_it_succeeds_within_its_retries(service: Service) -> None:
    async def story(send: Send) -> None:
        service.model.hold_s = HOLD_S
        first = asyncio.ensure_future(send())
        assert await asyncio.to_thread(service.model.begun.wait, 5)
        await asyncio.gather(first, send())

    service.run("sk-slot", story)
    assert service.watched.statuses == [429, 200, 200]
