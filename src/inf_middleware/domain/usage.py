"""Token counts of one call."""

from typing import Literal, TypeAlias

import msgspec

Basis: TypeAlias = Literal["reported", "counted", "estimated"]

# More tokens on one side of a call than any model takes; a larger number from a server is a
# mistake and must not become a bill.
TOKENS_MAX = 1_000_000_000


class Usage(msgspec.Struct, frozen=True, gc=False):
    """Token counts of one call, and what they rest on.

    `cached_input_tokens` and `cache_write_tokens` are parts of `input_tokens`,
    `reasoning_tokens` of `output_tokens`: never add them. `basis` is "reported" (by the model
    server), "counted" (from the text) or "estimated".
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    basis: Basis = "reported"

    @property
    def total_tokens(self) -> int:
        """Input and output together."""
        return self.input_tokens + self.output_tokens


def token_count(value: object) -> int | None:
    """Return `value` where it is a token count (an int from 0 to TOKENS_MAX), else None.

    Explicit 0 is 0; bools, floats, strings and negatives are not counts.
    """
    if type(value) is int and 0 <= value <= TOKENS_MAX:
        return value
    return None
