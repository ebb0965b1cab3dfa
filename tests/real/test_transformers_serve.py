"""`transformers serve`, whole and unmodified, with a tiny model made on the spot.

The ledger holds what the server itself reports, to the token, and clients get the bare server's
bytes. Not part of the usual run, for it needs torch: `make real`.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.response import ResponseHandler
from transformers.cli.serving.server import build_server
from transformers.cli.serving.systemone import SystemOneHandler
from transformers.cli.serving.transcription import TranscriptionHandler
from transformers.cli.serving.utils import GenerationState

from inf_middleware import Account, Gate
from tests.kit import records_of
from tests.real.tiny_model import make_model
from tests.servers import serving

MESSAGES: Any = [{"role": "user", "content": "Tell me about tea."}]
# What is another in every answer, by its nature.
_OWN = re.compile(r'"(id|item_id|created|created_at|completed_at)":\s*("[^"]*"|[\d.]+)')


def build(model: str) -> Any:
    """Build the app that `transformers serve` builds."""
    manager = ModelManager(device="cpu", force_model=model)
    state = GenerationState()
    both = {"model_manager": manager, "generation_state": state}
    return build_server(
        manager,
        ChatCompletionHandler(**both, chat_template_kwargs={}),
        completion_handler=CompletionHandler(**both),
        response_handler=ResponseHandler(**both, chat_template_kwargs={}),
        transcription_handler=TranscriptionHandler(manager, state),
        systemone_handler=SystemOneHandler(**both, chat_template_kwargs={}),
        generation_state=state,
    )


class Servers:
    def __init__(self, model: str, bare: str, metered: str, ledger: Path) -> None:
        self.model, self.bare, self.metered, self.ledger = model, bare, metered, ledger

    def ask(self, path: str, **body: Any) -> tuple[httpx.Response, httpx.Response]:
        """Ask the bare and the metered server the same."""
        asked = {"model": self.model, "temperature": 0, **body}
        headers = {"authorization": "Bearer sk-one"}
        answers = [
            httpx.post(url + path, json=asked, headers=headers, timeout=120)
            for url in (self.bare, self.metered)
        ]
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        return answers[0], answers[1]

    @property
    def last(self) -> dict[str, Any]:
        return records_of(self.ledger)[-1]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("model")
    model = make_model(folder / "tiny")
    ledger = folder / "ledger.db"
    app = build(model)
    gate = Gate(
        app,
        accounts={"sk-one": Account("acme", tier="Tier5")},
        ledger=f"sqlite:///{ledger}",
    )
    with serving(app) as bare, serving(gate) as metered:
        yield Servers(model, bare, metered, ledger)


def same(bare: httpx.Response, metered: httpx.Response) -> bool:
    return _OWN.sub("", bare.text) == _OWN.sub("", metered.text)


def usage_in(text: str) -> dict[str, Any]:
    """The last usage object of a JSON or streamed answer."""
    values = [text] if text.startswith("{") else re.findall(r"^data: (\{.*)$", text, re.MULTILINE)
    told = [json.loads(value) for value in values]
    return [
        usage
        for value in told
        if (usage := value.get("usage") or (value.get("response") or {}).get("usage"))
    ][-1]


ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": MESSAGES, "max_tokens": 24}),
    "completions": ("/v1/completions", {"prompt": "Tea is", "max_tokens": 24}),
    "responses": ("/v1/responses", {"input": "Tea is", "max_output_tokens": 24}),
}


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("api", ASKED)
def test_the_ledger_holds_the_servers_own_usage_and_the_bytes_are_its_own(
    api: str, stream: bool, servers: Servers
) -> None:
    path, body = ASKED[api]
    bare, metered = servers.ask(path, **body, stream=stream)
    assert same(bare, metered)
    assert bare.headers["content-type"] == metered.headers["content-type"]
    told = usage_in(metered.text)
    record = servers.last
    assert record["input_tokens"] == told.get("prompt_tokens", told.get("input_tokens"))
    assert record["output_tokens"] == told.get("completion_tokens", told.get("output_tokens"))
    assert record["output_tokens"] > 0
    assert (record["basis"], record["outcome"]) == ("reported", "complete")


def test_responses_stream_where_the_request_does_not_say(servers: Servers) -> None:
    bare, metered = servers.ask("/v1/responses", input="Tea is", max_output_tokens=24)
    assert metered.headers["content-type"].startswith("text/event-stream")
    assert same(bare, metered)
    assert servers.last["output_tokens"] == usage_in(metered.text)["output_tokens"]


def test_a_client_that_leaves_a_stream_is_billed_for_what_was_made(servers: Servers) -> None:
    before = len(records_of(servers.ledger))
    with openai.OpenAI(base_url=f"{servers.metered}/v1", api_key="sk-one") as client:
        stream = client.chat.completions.create(
            model=servers.model, messages=MESSAGES, max_tokens=1500, stream=True
        )
        for _ in zip(range(5), stream, strict=False):
            pass
        stream.close()
    for _ in range(600):
        if len(records_of(servers.ledger)) > before:
            break
        httpx.get(f"{servers.metered}/health", timeout=10)
    record = servers.last
    assert len(records_of(servers.ledger)) == before + 1
    assert record["basis"] == "counted"
    assert record["input_tokens"] > 0
    assert record["output_tokens"] > 0
