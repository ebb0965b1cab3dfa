"""The usage reports of one answer: a later one replaces an earlier one, count by count."""

from collections.abc import Iterable
from typing import Any

from inf_middleware.domain.usage import Usage
from inf_middleware.wire.texts import CHOICES_MAX
from inf_middleware.wire.usage import INPUT, OUTPUT, UsageAt, added

# The report of the whole answer, in the place of a choice's.
WHOLE = -1


class Reports:
    """What was told of an answer of so many choices to so many prompts.

    `stale`: choices with text that no report contains yet.
    """

    __slots__ = ("_per_prompt", "_prompts", "_told", "stale")

    def __init__(self, choices: int, prompts: int) -> None:
        self._prompts = prompts
        self._per_prompt = choices // prompts or 1
        self._told: dict[int, tuple[UsageAt, dict[str, int]]] = {}
        self.stale: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._told)

    @property
    def usage(self) -> Usage | None:
        """The latest report, None where nothing was told."""
        told = self._told
        if not told:
            return None
        if WHOLE in told:
            at, counts = told[WHOLE]
            return at.usage(counts)
        # Running reports are per choice, and each repeats the input of its prompt.
        of_prompts: dict[int, Usage] = {}
        of_choices = []
        for index, (at, counts) in told.items():
            usage = at.usage(counts)
            of_prompts[index // self._per_prompt] = Usage(
                usage.input_tokens, 0, usage.cached_input_tokens, usage.cache_write_tokens
            )
            of_choices.append(
                Usage(0, usage.output_tokens, reasoning_tokens=usage.reasoning_tokens)
            )
        return added([*of_prompts.values(), *of_choices])

    @property
    def are_of_whole(self) -> bool:
        """Whether the report of the whole answer is what is told."""
        return WHOLE in self._told

    @property
    def tells_input(self) -> bool:
        """Whether the input of all prompts is told."""
        told = self._told
        if WHOLE not in told:
            prompts = {index // self._per_prompt for index in told}
            if len(prompts) < self._prompts:
                return False
        for _, counts in told.values():  # noqa: SIM110 - of each call: `all` takes three times it
            if INPUT not in counts:
                return False
        return True

    @property
    def tells_output(self) -> bool:
        """Whether all the output that was seen is told."""
        if self.stale or not self._told:
            return False
        for _, counts in self._told.values():  # noqa: SIM110 - as above
            if OUTPUT not in counts:
                return False
        return True

    @property
    def covers(self) -> bool:
        """Whether the input of all prompts and all the output that was seen is told."""
        told = self._told
        if len(told) == 1 and WHOLE in told:  # as of nearly all
            counts = told[WHOLE][1]
            return INPUT in counts and OUTPUT in counts and not self.stale
        return self.tells_input and self.tells_output

    @property
    def output(self) -> int:
        """The output that is told, of all choices."""
        told = 0
        for _, counts in self._told.values():
            told += counts.get(OUTPUT, 0)
        return told

    def were_of(self, index: int) -> None:
        """Take what was told of the whole for what is told of a choice."""
        if WHOLE in self._told:
            self._told[index] = self._told.pop(WHOLE)

    def take(self, places: Iterable[UsageAt], value: dict[str, Any], index: int) -> bool:
        """Take what a value tells of a choice, or of the whole; tell whether it tells anything."""
        found = False
        for at in places:
            counts = at.read(value)
            if counts:
                found = True
                self.take_counts(at, counts, index)
        return found

    def take_counts(self, at: UsageAt, counts: dict[str, int], index: int) -> None:
        """Take what a place tells of a choice, or of the whole, which is not nothing."""
        known = self._told.get(index)
        if index == WHOLE:
            self._told.clear()
            self.stale.clear()
        else:
            self.stale.discard(index)
            if known is None and len(self._told) >= CHOICES_MAX:
                return
        self._told[index] = (at, {**known[1], **counts} if known else counts)
