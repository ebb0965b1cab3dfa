"""Usage that a model server hands to middlewares beside its answer.

Source: vLLM 0.33.0 sets `request.state.request_metadata.final_usage_info` at the end of a
generation, in streams without a usage event too, and leaves it None after an error.
"""

from collections.abc import Mapping
from typing import Any

from inf_middleware.domain.usage import Usage, token_count


def handed_usage(state: Mapping[str, Any] | None) -> Usage | None:
    """Return the usage in the `state` of a request's scope; None where there is none."""
    info = _of(state.get("request_metadata") if state else None, "final_usage_info")
    inputs = token_count(_of(info, "prompt_tokens"))
    outputs = token_count(_of(info, "completion_tokens"))
    if inputs is None or outputs is None:
        return None
    cached = token_count(_of(info, "prompt_tokens_details", "cached_tokens"))
    reasoning = token_count(_of(info, "completion_tokens_details", "reasoning_tokens"))
    return Usage(
        inputs,
        outputs,
        cached_input_tokens=min(cached or 0, inputs),
        reasoning_tokens=min(reasoning or 0, outputs),
    )


def _of(value: object, *names: str) -> object:
    for name in names:
        value = getattr(value, name, None)
    return value
