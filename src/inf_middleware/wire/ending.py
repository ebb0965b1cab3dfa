"""The clean end of a stream that has to be cut: as the dialect ends one that reached its cap.

Source: the dialects' own sources; the shapes are those that their clients were seen to take.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from inf_middleware.domain.usage import Usage
from inf_middleware.wire.dialect import Dialect, Request
from inf_middleware.wire.outline import Outline, Part
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

    `created` is the call's time in seconds. `usage` is told where the client asked for it, and
    always where the dialect always tells it.
    """
    id_ = reader.response_id or call_id
    model = reader.model or request.model
    used = usage or Usage()
    head = {"id": id_, "created": created, "model": model}
    if dialect.name == "openai.chat":
        delta: dict[str, Any] = {"delta": {}}
        return _openai({**head, "object": "chat.completion.chunk"}, delta, request, reader, usage)
    if dialect.name == "openai.completions":
        text: dict[str, Any] = {"text": "", "logprobs": None}
        return _openai({**head, "object": "text_completion"}, text, request, reader, usage)
    if dialect.name == "openai.responses" and reader.outline is not None:
        response = {"id": id_, "object": "response", "created_at": created, "model": model}
        return _responses(response, reader, reader.outline, used)
    if dialect.name == "anthropic.messages" and reader.outline is not None:
        return _anthropic(reader.outline, used)
    if dialect.name == "ollama.chat":
        return _ollama(model, created, {"message": {"role": "assistant", "content": ""}}, used)
    if dialect.name == "ollama.generate":
        return _ollama(model, created, {"response": ""}, used)
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


def _anthropic(outline: Outline, usage: Usage) -> bytes:
    events: list[dict[str, Any]] = [
        {"type": "content_block_stop", "index": index} for index in outline.open
    ]
    events.append(
        {
            "type": "message_delta",
            "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
            "usage": {"output_tokens": usage.output_tokens},
        }
    )
    events.append({"type": "message_stop"})
    return _named(events)


def _responses(
    response: dict[str, Any], reader: AnswerReader, outline: Outline, usage: Usage
) -> bytes:
    items = {
        number: _item(part, reader.texts_of(number))
        for number, part in sorted(outline.parts.items())
    }
    events: list[dict[str, Any]] = [
        {"type": "response.output_item.done", "output_index": number, "item": items[number]}
        for number in outline.open
    ]
    told = {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
    response |= {
        "status": "incomplete",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"},
        "output": list(items.values()),
        "usage": told,
    }
    events.append({"type": "response.incomplete", "response": response})
    return _named(
        {**event, "sequence_number": number}
        for number, event in enumerate(events, outline.last_number + 1)
    )


def _item(part: Part, texts: list[str]) -> dict[str, Any]:
    """Return an item of a response with what was made of it."""
    item = {**part.named, "status": "incomplete" if part.is_open else "completed"}
    kind = item.get("type")
    if kind == "message":
        item["content"] = [
            {"type": "output_text", "text": text, "annotations": []} for text in texts
        ]
    elif kind == "reasoning":
        item["summary"] = []
        item["content"] = [{"type": "reasoning_text", "text": text} for text in texts]
    elif kind == "function_call":
        item["arguments"] = "".join(texts)
    elif kind == "custom_tool_call":
        item["input"] = "".join(texts)
    return item


def _ollama(model: str | None, created: int, empty: dict[str, Any], usage: Usage) -> bytes:
    last = {
        "model": model,
        "created_at": f"{datetime.fromtimestamp(created, UTC):%Y-%m-%dT%H:%M:%SZ}",
        **empty,
        "done": True,
        "done_reason": "length",
        "prompt_eval_count": usage.input_tokens,
        "eval_count": usage.output_tokens,
    }
    return msgspec.json.encode(last) + b"\n"


def _named(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (event["type"].encode(), msgspec.json.encode(event))
        for event in events
    )
