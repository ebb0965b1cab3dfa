"""vLLM's own parser, app, key check and `--middleware`; only the engine is a stand-in.

Its kernels need a GPU, its HTTP server does not: `make recipes`.
"""

import asyncio
import hashlib
import json
from argparse import Namespace
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from vllm.entrypoints.common.cli_args import make_arg_parser
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
)
from vllm.utils.argparse_utils import FlexibleArgumentParser

from inf_middleware import Gate
from tests.examples.recipes import Recipe, texts_of
from tests.kit import records_of
from tests.servers import serving

CHOICE = {"index": 0, "message": {"role": "assistant", "content": "Tea is served."}}
USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}


class Engine:
    """Stands where vLLM's engine would: answers what a request's own options ask for."""

    async def create_chat_completion(self, asked: ChatCompletionRequest, request: Any) -> Any:
        answer = {"id": "chatcmpl-1", "created": 1, "model": asked.model}
        if asked.stream:
            return self._stream({**answer, "object": "chat.completion.chunk"}, asked)
        choice = {**CHOICE, "finish_reason": "stop"}
        return ChatCompletionResponse.model_validate(
            {**answer, "choices": [choice], "usage": USAGE}
        )

    async def _stream(self, head: Any, asked: ChatCompletionRequest) -> AsyncIterator[str]:
        for word in ("Tea ", "is ", "served."):
            await asyncio.sleep(0)
            choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
            yield f"data: {json.dumps({**head, 'choices': [choice]})}\n\n"
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield f"data: {json.dumps({**head, 'choices': [], 'usage': USAGE})}\n\n"
        yield "data: [DONE]\n\n"


def parsed(*flags: str) -> Namespace:
    """Parse flags as `vllm serve` does."""
    parser = make_arg_parser(FlexibleArgumentParser())
    origins = ["--allowed-origins", '["https://chat.example"]']
    return parser.parse_args(["--middleware", "inf_middleware.Gate", *origins, *flags])


def built(*flags: str) -> Any:
    """Build the app that `vllm serve` builds, with a stand-in for its engine."""
    args = parsed(*flags)
    app = build_app(args, ("generate",))
    app.state.openai_serving_chat = Engine()
    app.state.args = args
    app.state.enable_server_load_tracking = False
    app.state.log_stats = False
    return app


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    accounts = "".join(
        f'[[accounts.account]]\nid = "{name}"\nkeys = ["sha256:{digest}"]\n'
        for name in ("acme", "own")
        for digest in [hashlib.sha256(f"sk-{name}".encode()).hexdigest()]
    )
    path = tmp_path / "ledger.db"
    (tmp_path / "inf.toml").write_text(f'{accounts}[ledger]\nuri = "sqlite:///{path}"\n')
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(tmp_path / "inf.toml"))
    return path


def test_the_flag_alone_meters_limits_and_bills(ledger: Path) -> None:
    with serving(built()) as url:
        recipe = Recipe(url, None)
        assert recipe.post("sk-acme").json()["usage"].items() >= USAGE.items()
        stream = recipe.post("sk-acme", stream=True)
        assert texts_of(stream) == "Tea is served."
        assert "usage" not in stream.text  # asked for by us, and taken out again
        statuses = [recipe.post("sk-acme").status_code for _ in range(3)]
        assert statuses == [200, 200, 429]
        assert recipe.post("sk-none").json()["error"]["code"] == "invalid_api_key"
        preflight = recipe.preflight()
        assert preflight.status_code == 200, preflight.text
        assert preflight.headers["access-control-allow-origin"] == "https://chat.example"
    told = [(r["input_tokens"], r["output_tokens"], r["basis"]) for r in records_of(ledger)]
    assert told == [(9, 4, "reported")] * 4


def test_vllms_own_key_check_stands_inside_and_what_it_refuses_is_free(ledger: Path) -> None:
    with serving(built("--api-key", "sk-own")) as url:
        recipe = Recipe(url, None)
        refused = recipe.post("sk-acme")
        assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
        assert recipe.post("sk-own").status_code == 200
        assert recipe.post("sk-none").json()["error"]["code"] == "invalid_api_key"
        preflight = recipe.preflight()
        assert preflight.status_code == 200, preflight.text
    amounts = [(record["account"], record["output_tokens"]) for record in records_of(ledger)]
    assert amounts == [("acme", 0), ("own", 4)]


def test_its_stack_is_built_already_and_the_flag_is_the_way_in(ledger: Path) -> None:
    app = built()
    with pytest.raises(RuntimeError, match="Cannot add middleware"):
        app.add_middleware(Gate)
