"""The clean end of a stream that has to be cut: as the dialect ends one that reached its cap.

Source: the dialects' own sources; the shapes are those that their clients were seen to take.
"""

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from inf_middleware.domain.usage import Usage
from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.outline import Part
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.request import Request

_MESSAGE = "The balance of this account is used up; the answer ends here."


class _Cut(NamedTuple):
    """A stream that is cut: what was asked for, what was made, and what of it is to be said.

    `created` is the call's time in seconds. `usage` is None where nothing is known of it.
    """

    request: Request
    reader: AnswerReader
    id: str
    model: str | None
    created: int
    usage: Usage | None

    @property
    def used(self) -> Usage:
        """The usage, where the dialect always tells it."""
        return self.usage or Usage()


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
    end = _ENDS.get(dialect.name)
    if end is None:
        return dialect.error_event(_MESSAGE, type="billing_error", code="insufficient_balance")
    id_, model = reader.response_id or call_id, reader.model or request.model
    return end(_Cut(request, reader, id_, model, created, usage))


def _chat(cut: _Cut) -> bytes:
    return _openai(cut, "chat.completion.chunk", {"delta": {}})


def _completions(cut: _Cut) -> bytes:
    return _openai(cut, "text_completion", {"text": "", "logprobs": None})


def _openai(cut: _Cut, kind: str, empty: dict[str, Any]) -> bytes:
    head = {"id": cut.id, "created": cut.created, "model": cut.model, "object": kind}
    unfinished = cut.reader.unfinished
    choices = [{"index": index, **empty, "finish_reason": "length"} for index in unfinished]
    events: list[dict[str, Any]] = [{**head, "choices": choices}] if choices else []
    usage = cut.usage
    if usage is not None and cut.request.wants_usage:
        told = {
            "prompt_tokens": usage.input_tokens,
            "completion_tokens": usage.output_tokens,
            "total_tokens": usage.total_tokens,
        }
        events.append({**head, "choices": [], "usage": told})
    return _unnamed(events) + _DONE


def _anthropic(cut: _Cut) -> bytes:
    last = {
        "type": "message_delta",
        "delta": {"stop_reason": "max_tokens", "stop_sequence": None},
        "usage": {"output_tokens": cut.used.output_tokens},
    }
    return _named([*_closing(cut.reader), last, {"type": "message_stop"}])


def _cohere(cut: _Cut) -> bytes:
    # What is billed and what the model took are one here: nothing of it is free.
    tokens = {"input_tokens": cut.used.input_tokens, "output_tokens": cut.used.output_tokens}
    last = {
        "type": "message-end",
        "id": cut.id,
        "delta": {
            "finish_reason": "MAX_TOKENS",
            "usage": {"billed_units": tokens, "tokens": tokens},
        },
    }
    return _named([*_closing(cut.reader), last]) + _DONE


def _closing(reader: AnswerReader) -> list[dict[str, Any]]:
    """Return the events that close what is open."""
    outline = reader.outline
    return [{"type": kind, "index": number} for kind, number in outline.open] if outline else []


def _responses(cut: _Cut) -> bytes:
    outline = cut.reader.outline
    assert outline is not None, "the dialect has parts"
    items = {
        number: _item(part, cut.reader.texts_of(number))
        for (_, number), part in sorted(outline.parts.items())
    }
    events: list[dict[str, Any]] = [
        {"type": kind, "output_index": number, "item": items[number]}
        for kind, number in outline.open
    ]
    usage = cut.used
    told = {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_input_tokens},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }
    response = {
        "id": cut.id,
        "object": "response",
        "created_at": cut.created,
        "model": cut.model,
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


def _ollama_chat(cut: _Cut) -> bytes:
    return _ollama(cut, {"message": {"role": "assistant", "content": ""}})


def _ollama_generate(cut: _Cut) -> bytes:
    return _ollama(cut, {"response": ""})


def _ollama(cut: _Cut, empty: dict[str, Any]) -> bytes:
    last = {
        "model": cut.model,
        "created_at": f"{datetime.fromtimestamp(cut.created, UTC):%Y-%m-%dT%H:%M:%SZ}",
        **empty,
        "done": True,
        "done_reason": "length",
        "prompt_eval_count": cut.used.input_tokens,
        "eval_count": cut.used.output_tokens,
    }
    return _json(last) + b"\n"


def _tgi(cut: _Cut) -> bytes:
    # Its last event carries a last token: an empty one, which clients that print tokens pass over.
    made = cut.used.output_tokens
    details = {
        "finish_reason": "length",
        "generated_tokens": made,
        "seed": None,
        "input_length": cut.used.input_tokens,
    }
    last = {
        "index": made + 1,
        "token": {"id": 0, "text": "", "logprob": 0.0, "special": True},
        "generated_text": "".join(cut.reader.texts()),
        "details": details if cut.request.wants_usage else None,
    }
    return b"data:" + _json(last) + b"\n\n"


def _llama_cpp(cut: _Cut) -> bytes:
    last = {
        "content": "",
        "tokens": [],
        "stop": True,
        "model": cut.model,
        "stop_type": "limit",
        "stopping_word": "",
        "truncated": False,
    }
    if len(cut.reader.unfinished) == 1:
        last["tokens_predicted"] = cut.used.output_tokens
        last["tokens_evaluated"] = cut.used.input_tokens
    return _unnamed({"index": index, **last} for index in cut.reader.unfinished)


def _sglang(cut: _Cut) -> bytes:
    unfinished, texts = cut.reader.unfinished, cut.reader.texts()
    events = []
    for index in unfinished:
        told: dict[str, Any] = {"id": cut.id, "finish_reason": {"type": "length"}}
        if len(unfinished) == 1:
            told["prompt_tokens"] = cut.used.input_tokens
            told["completion_tokens"] = cut.used.output_tokens
            told["cached_tokens"] = cut.used.cached_input_tokens
        # Each of its events repeats all the text before it.
        text = texts[index] if index < len(texts) else ""
        several = {} if len(unfinished) == 1 else {"index": index}
        events.append({**several, "text": text, "meta_info": told})
    return _unnamed(events) + _DONE


_DONE = b"data: [DONE]\n\n"


def _json(value: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeError:  # half of a character, in a name that the server gave
        return json.dumps(value).encode()


def _unnamed(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(b"data: " + _json(event) + b"\n\n" for event in events)


def _named(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (event["type"].encode(), _json(event)) for event in events
    )


_ENDS: dict[str, Callable[[_Cut], bytes]] = {
    "openai.chat": _chat,
    "openai.completions": _completions,
    "openai.responses": _responses,
    "anthropic.messages": _anthropic,
    "ollama.chat": _ollama_chat,
    "ollama.generate": _ollama_generate,
    "llama_cpp.completion": _llama_cpp,
    "sglang.generate": _sglang,
    "tgi.generate": _tgi,
    "tgi.generate_stream": _tgi,
    "cohere.chat": _cohere,
}
