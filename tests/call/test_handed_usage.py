"""What a server hands to middlewares beside its answer is taken where the answer tells nothing."""

from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from tests.apps import delta, event, usage_chunk
from tests.call.test_any_order import cases
from tests.call.test_dialect_calls import serve
from tests.kit import STREAM, House

# As vLLM 0.33.0 defines them: `entrypoints/openai/engine/protocol.py`.


class PromptTokenUsageInfo(BaseModel):
    cached_tokens: int | None = None


class UsageInfo(BaseModel):
    prompt_tokens: int = 0
    total_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: PromptTokenUsageInfo | None = None


class RequestResponseMetadata(BaseModel):
    request_id: str
    final_usage_info: UsageInfo | None = None


def vllm(info: UsageInfo | None, *, tells: bool = False, fails: bool = False) -> Any:
    """Make a server that streams two words, and hands its usage over as vLLM does."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> StreamingResponse:
        metadata = RequestResponseMetadata(request_id="chatcmpl-1")
        request.state.request_metadata = metadata

        async def pieces() -> Any:
            yield event(delta("two"))
            yield event(delta(" words"))
            if fails:
                yield event({"error": {"message": "the engine failed", "code": 500}})
            else:
                if tells:
                    yield event(usage_chunk(9, 3))
                metadata.final_usage_info = info
            yield event("[DONE]")

        return StreamingResponse(pieces(), media_type="text/event-stream")

    return app


FINAL = UsageInfo(
    prompt_tokens=15,
    completion_tokens=4,
    total_tokens=19,
    prompt_tokens_details=PromptTokenUsageInfo(cached_tokens=8),
)


@pytest.mark.parametrize(("order", "between"), cases())
def test_the_usage_that_vllm_hands_over_is_billed(order: Any, between: Any, tmp_path: Path) -> None:
    house = House(vllm(FINAL), tmp_path, order=order, between=between, include_usage=False)
    assert serve(house, STREAM).status == 200
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (15, 4)
    assert (record["cached_input_tokens"], record["basis"]) == (8, "reported")


def test_what_the_answer_itself_tells_holds(tmp_path: Path) -> None:
    house = House(vllm(FINAL, tells=True), tmp_path)
    serve(house, STREAM)
    assert (house.record["input_tokens"], house.record["output_tokens"]) == (9, 3)


@pytest.mark.parametrize(
    "info", [None, UsageInfo.model_construct(prompt_tokens=-1), UsageInfo(completion_tokens=None)]
)
def test_what_hands_over_no_counts_is_counted(info: Any, tmp_path: Path) -> None:
    house = House(vllm(info), tmp_path, include_usage=False)
    serve(house, STREAM)
    assert (house.record["output_tokens"], house.record["basis"]) == (2, "counted")


def test_a_stream_that_failed_is_counted_as_far_as_it_came(tmp_path: Path) -> None:
    house = House(vllm(FINAL, fails=True), tmp_path, include_usage=False)
    serve(house, STREAM)
    record = house.record
    assert (record["output_tokens"], record["outcome"]) == (2, "upstream_error")
