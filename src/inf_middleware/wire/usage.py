"""Where an API tells the tokens of an answer, and in which words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from inf_middleware.domain.usage import Usage, token_count
from inf_middleware.wire.paths import find, steps_of

INPUT, OUTPUT = "input", "output"
WHOLES = frozenset((INPUT, OUTPUT))


@dataclass(frozen=True, kw_only=True)
class UsageAt:
    """One place and vocabulary of a usage report, as paths; "" says that it tells no such count.

    `at` leads to the object that reports ("": the answer itself), the others from there.
    `beside_input` are input tokens that `input` does not contain. `cached_input`, `cache_write` and
    `reasoning` are parts of what is told already; of a tuple the first that tells holds.
    """

    at: str = "usage"
    input: str = ""
    output: str = ""
    beside_input: tuple[str, ...] = ()
    cached_input: str = ""
    cache_write: str = ""
    reasoning: str | tuple[str, ...] = ""

    def read(self, value: object) -> dict[str, int]:
        """Return the counts that a report tells; empty where it tells neither input nor output."""
        report = find(value, self.at)
        return self.counts(report) if isinstance(report, dict) else {}

    def counts(self, report: dict[str, Any]) -> dict[str, int]:
        """Return the counts of the object that reports, as `read` does.

        Nothing read and nothing written is what servers say that do not count (LitServe 0.2.19,
        whose API yields no counts): no answer comes from no tokens at all.
        """
        told: dict[str, int] = {}
        for name, head, rest in self.ways:
            value = report.get(head)
            if value is None:
                continue
            count = token_count(find(value, rest) if rest else value)
            if count is not None and name not in told:
                told[name] = count
        if INPUT in told:
            return told if any(told.values()) else {}
        return told if OUTPUT in told else {}

    @cached_property
    def ways(self) -> tuple[tuple[str, str, str], ...]:
        """The counts by name, each with the paths to it in their order: the first step, the rest.

        A first step with alternatives is taken for each of them, in their order.
        """
        paths = (
            (INPUT, self.input),
            (OUTPUT, self.output),
            ("cached_input", self.cached_input),
            ("cache_write", self.cache_write),
            ("reasoning", self.reasoning),
            *((path, path) for path in self.beside_input),
        )
        return tuple(
            (name, head, way.partition(".")[2])
            for name, ways in paths
            for way in ((ways,) if isinstance(ways, str) else ways)
            if way
            for head in steps_of(way)[0]
        )

    def usage(self, told: Mapping[str, int]) -> Usage:
        """Return the usage that counts add up to."""
        inputs = told.get(INPUT, 0)
        for path in self.beside_input:
            inputs += told.get(path, 0)
        outputs = told.get(OUTPUT, 0)
        if told.keys() <= WHOLES:  # no parts are told
            return Usage(inputs, outputs)
        return Usage(
            input_tokens=inputs,
            output_tokens=outputs,
            cached_input_tokens=min(told.get("cached_input", 0), inputs),
            cache_write_tokens=min(told.get("cache_write", 0), inputs),
            reasoning_tokens=min(told.get("reasoning", 0), outputs),
        )


def added(usages: Iterable[Usage]) -> Usage:
    """Add usages up."""
    total = Usage()
    for usage in usages:
        total = Usage(
            total.input_tokens + usage.input_tokens,
            total.output_tokens + usage.output_tokens,
            total.cached_input_tokens + usage.cached_input_tokens,
            total.cache_write_tokens + usage.cache_write_tokens,
            total.reasoning_tokens + usage.reasoning_tokens,
        )
    return total


# Cached and written parts are inside `prompt_tokens`, reasoning inside `completion_tokens`; vLLM
# and SGLang add names of their own.
# Source: types of the openai SDK 3.54.0; vLLM 0.33.0, SGLang 0.5.23.
OPENAI_USAGE = UsageAt(
    input="prompt_tokens",
    output="completion_tokens",
    cached_input="prompt_tokens_details.cached_tokens",
    cache_write="prompt_tokens_details.cache_write_tokens|created_cache_tokens",
    reasoning=("completion_tokens_details.reasoning_tokens", "reasoning_tokens"),
)
