"""The clean end of a stream that has to be cut: as the dialect ends one that reached its cap.

Source: the dialects' own sources; the shapes are those that their clients were seen to take.
"""

from typing import Any

import msgspec

from inf_middleware.domain.usage import Usage
from inf_middleware.wire.dialect import Dialect, Request
from inf_middleware.wire.reader import AnswerReader

_MESSAGE = "The balance of this account is used up; the answer ends here."


def clean_end(
    dialect: Dialect,
    request: Request,
    reader: AnswerReader,
    *,
    call_id: str,
    created: int,
    usage: Usage | None,
) -> bytes:
    """Return the events that end a running stream; an error where the dialect has no such end.

    `created` is the call's time in seconds. `usage` is told where the client asked for it.
    """
    head = {
        "id": reader.response_id or call_id,
        "created": created,
        "model": reader.model or request.model,
    }
    if dialect.name == "openai.chat":
        delta: dict[str, Any] = {"delta": {}}
        return _openai({**head, "object": "chat.completion.chunk"}, delta, request, reader, usage)
    if dialect.name == "openai.completions":
        text: dict[str, Any] = {"text": "", "logprobs": None}
        return _openai({**head, "object": "text_completion"}, text, request, reader, usage)
    if dialect.name == "anthropic.messages":
        return _anthropic(reader, usage)
    return dialect.error_event(_MESSAGE, type="billing_error", code="insufficient_balance")


def _openai(
    head: dict[str, Any],
    empty: dict[str, Any],
    request: Request,
    reader: AnswerReader,
    usage: Usage | None,
) -> bytes:
    choices = [{"index": index, **empty, "finish_reason": "length"} for index in reader.unfinished]
    events = [{**head, "choices": choices}] if choices else []
    if usage is not None and request.wants_usage:
        told = {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
        }
        events.append({**head, "choices": [], "usage": told})
    data = [msgspec.json.encode(event) for event in events]
    return b"".join(b"data: " + one + b"\n\n" for one in [*data, b"[DONE]"])


def _anthropic(reader: AnswerReader, usage: Usage | None) -> bytes:
    events: list[dict[str, Any]] = [
        {"type": "content_block_stop", "index": index} for index in reader.open_groups
    ]
    events.append(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": {"output_tokens": usage.output_tokens if usage else 0},
        }
    )
    events.append({"type": "message_stop"})
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (event["type"].encode(), msgspec.json.encode(event))
        for event in events
    )
