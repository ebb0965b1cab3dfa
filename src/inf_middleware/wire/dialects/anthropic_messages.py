"""Anthropic messages, which vLLM and llama.cpp serve too.

Tokens read from and written to the cache are beside `input_tokens`. `message_start` tells the input
(its output is a placeholder), `message_delta` running totals.

Source: docs.anthropic.com/en/api/messages (2026-11); types of the anthropic SDK 2.12.0; recorded
answers of vLLM 0.33.0.
"""

from dataclasses import replace

from inf_middleware.wire.dialect import FUNCTION_CALLS, STRUCTURED_OUTPUT, Dialect
from inf_middleware.wire.form import Answers, PartsAt
from inf_middleware.wire.usage import UsageAt

_USAGE = UsageAt(
    input="input_tokens",
    output="output_tokens",
    beside_input=("cache_read_input_tokens", "cache_creation_input_tokens"),
    cached_input="cache_read_input_tokens",
    cache_write="cache_creation_input_tokens",
)

MESSAGES = Dialect(
    name="anthropic.messages",
    paths=("/messages",),
    messages=("messages",),
    texts=("system",),
    schemas=("tools",),
    output_cap=("max_tokens",),
    errors="anthropic",
    features=(
        ("tools", FUNCTION_CALLS),
        ("output_config.format", STRUCTURED_OUTPUT),
        ("output_format", STRUCTURED_OUTPUT),
    ),
    folds_names=True,  # Ollama's
    answers=Answers(
        usage=(replace(_USAGE, at="message.usage", output=""), _USAGE),
        id=("message.id", "id"),
        model=("message.model", "model"),
        text=("content.text", "content.thinking", "content.name", "content.input"),
        delta=(
            "delta.text",
            "delta.thinking",
            "delta.partial_json",
            "content_block.name",
            "content_block.text",
        ),
        ends=frozenset({"message_stop"}),
        parts=PartsAt(
            closed_by={"content_block_start": "content_block_stop"},
            number="index",
            part="content_block",
        ),
    ),
)
