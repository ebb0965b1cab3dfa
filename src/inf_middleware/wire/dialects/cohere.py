"""Cohere's second API, which vLLM serves too.

Source: docs.cohere.com/reference/chat (v2, 2026-11); vLLM 0.33.0, entrypoints/cohere. `tokens` are
those of the model; `billed_units` leave some of them out.
"""

from inf_middleware.wire.dialect import FUNCTION_CALLS, STRUCTURED_OUTPUT, Dialect
from inf_middleware.wire.form import Answers, PartsAt
from inf_middleware.wire.usage import UsageAt


def _usage(at: str) -> tuple[UsageAt, ...]:
    # What is named later replaces what is named before it.
    return tuple(
        UsageAt(at=f"{at}.{part}", input="input_tokens", output="output_tokens")
        for part in ("billed_units", "tokens")
    )


CHAT = Dialect(
    name="cohere.chat",
    paths=("/v2/chat",),
    messages=("messages",),
    texts=("documents",),
    schemas=("tools", "response_format"),
    output_cap=("max_tokens",),
    features=(
        ("tools", FUNCTION_CALLS),
        ("response_format", STRUCTURED_OUTPUT),
    ),
    answers=Answers(
        usage=(*_usage("usage"), *_usage("delta.usage")),
        text=(
            "message.content.text",
            "message.content.thinking",
            "message.tool_plan",
            "message.tool_calls.function.name",
            "message.tool_calls.function.arguments",
        ),
        delta=(
            "delta.message.content.text",
            "delta.message.content.thinking",
            "delta.message.tool_plan",
            "delta.message.tool_calls.function.name",
            "delta.message.tool_calls.function.arguments",
        ),
        ends=frozenset({"message-end"}),
        parts=PartsAt(
            closed_by={
                "content-start": "content-end",
                "tool-call-start": "tool-call-end",
                "citation-start": "citation-end",
            },
            number="index",
        ),
    ),
)

EMBED = Dialect(
    name="cohere.embed",
    paths=("/v2/embed",),
    texts=("texts", "inputs"),
    generates=False,
    answers=Answers(usage=(*_usage("meta"), *_usage("usage"))),
)
