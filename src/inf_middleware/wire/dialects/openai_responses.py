"""OpenAI responses. What an earlier response holds is known to the server alone.

Each text comes as deltas, then whole in a `.done` event, then in the last event: deltas count.

Source: platform.openai.com/docs/api-reference/responses (2026-11); recorded answers of vLLM 0.33.0.
"""

from dataclasses import replace

from inf_middleware.wire.dialect import FUNCTION_CALLS, STRUCTURED_OUTPUT, Dialect
from inf_middleware.wire.form import Answers, PartsAt
from inf_middleware.wire.usage import UsageAt

_USAGE = UsageAt(
    input="input_tokens",
    output="output_tokens",
    cached_input="input_tokens_details.cached_tokens",
    cache_write="input_tokens_details.cache_write_tokens",
    reasoning="output_tokens_details.reasoning_tokens",
)

RESPONSES = Dialect(
    name="openai.responses",
    paths=("/responses",),
    messages=("input",),
    texts=("instructions",),
    schemas=("tools", "text.format"),
    output_cap=("max_output_tokens",),
    background="background",
    features=(
        ("tools", FUNCTION_CALLS),
        ("text.format", STRUCTURED_OUTPUT),
    ),
    truncation=(
        "truncation",
        "truncate_prompt_tokens",
    ),
    folds_names=True,  # Ollama's
    answers=Answers(
        usage=(_USAGE, replace(_USAGE, at="response.usage")),
        id=("response.id", "id"),
        model=("response.model", "model"),
        text=(
            "output.content.text",
            "output.content.refusal",
            "output.summary.text",
            "output.name",
            "output.arguments",
            "output.input",
        ),
        delta=("delta",),
        group=("output_index", "content_index"),
        ends=frozenset({"response.completed", "response.incomplete", "response.failed"}),
        fails=frozenset({"error", "response.failed"}),
        # Sound as base64; its words come in events of their own.
        silent=frozenset({"response.audio.delta", "response.output_audio.delta"}),
        unfinished=frozenset({"queued", "in_progress"}),
        parts=PartsAt(
            closed_by={"response.output_item.added": "response.output_item.done"},
            number="output_index",
            part="item",
            sequence="sequence_number",
        ),
    ),
)
