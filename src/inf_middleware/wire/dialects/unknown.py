"""Any other POST: metered by the usage object in its answer, where it has one."""

from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.form import Answers
from inf_middleware.wire.usage import UsageAt


def _usage(at: str) -> UsageAt:
    # Anthropic's words for the cache: only there it is beside the input.
    return UsageAt(
        at=at,
        input="input_tokens|prompt_tokens",
        output="output_tokens|completion_tokens",
        beside_input=("cache_read_input_tokens", "cache_creation_input_tokens"),
        cached_input="cache_read_input_tokens",
        cache_write="cache_creation_input_tokens",
    )


UNKNOWN = Dialect(
    name="unknown",
    reads_body=False,
    answers=Answers(
        usage=tuple(_usage(at) for at in ("message.usage", "response.usage", "usage")),
        id=("message.id", "response.id", "id"),
        model=("message.model", "response.model", "model"),
        ends=frozenset(
            {"message_stop", "response.completed", "response.incomplete", "response.failed"}
        ),
        fails=frozenset({"error", "response.failed"}),
    ),
)
