"""Which counter counts for which model."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import tiktoken

from inf_middleware.domain.errors import ConfigError
from inf_middleware.tokens.chat import CHATML_PROFILE, OPENAI_PROFILE, Profile
from inf_middleware.tokens.counting import Counter
from inf_middleware.tokens.encodings import ENCODINGS

# Nearest to open models, Chinese above all.
DEFAULT_COUNTER = "o200k_base"

# By the model's name in lower case; all others have OpenAI's.
_PROFILES = (("*qwen*", CHATML_PROFILE),)


@dataclass(frozen=True, slots=True)
class Counting:
    """How one model's input is counted: by which counter, and what is added to its texts."""

    counter: str | Path | tiktoken.Encoding | Callable[[str], int] = DEFAULT_COUNTER
    profile: Profile = OPENAI_PROFILE


# A pattern, its counter, and its profile where it has one of its own.
_Row: TypeAlias = tuple[str, Counter, Profile | None]

# Models remembered with what was found for them; their names come from callers.
MODELS_MAX = 1_000

CounterOption: TypeAlias = str | Path | tiktoken.Encoding | Callable[[str], int] | Counting


class Counters:
    """The counter and the profile of each model, by the first pattern that fits its name.

    Raises:
        ConfigError: Something given is no counter.
    """

    def __init__(self, given: CounterOption | Mapping[str, CounterOption]) -> None:
        by_pattern = given if isinstance(given, Mapping) else {"*": given}
        self._rows: list[_Row] = []
        self._found: dict[str, tuple[_Row, tuple[Counter, Profile]]] = {}  # by model
        for pattern, option in by_pattern.items():
            if not isinstance(pattern, str) or not pattern:
                raise ConfigError(
                    f"counter is for {pattern!r}; a mapping goes from model pattern to counter:"
                    ' {"Qwen/*": "tokenizer.json", "*": "o200k_base"}'
                )
            own = option if isinstance(option, Counting) else Counting(option)
            profile = own.profile if isinstance(option, Counting) else None
            if profile is not None:
                _check_profile(profile)
            self._rows.append((pattern, Counter(own.counter), profile))
        self._rows.append(("*", Counter(DEFAULT_COUNTER), None))
        # One encoding's name for all models is nobody's own tokenizer.
        self._is_own = isinstance(given, Mapping) or given not in ENCODINGS

    def found(self, model: str | None) -> tuple[Counter, Profile]:
        """Return the counter of a model, and what is added to the texts of its input."""
        found = self._found.get(model or "")
        return self._find(model or "")[1] if found is None else found[1]

    def of(self, model: str | None) -> Counter:
        """Return the counter of a model."""
        return self.found(model)[0]

    def profile_of(self, model: str | None) -> Profile:
        """Return what is added to the texts of a model's input."""
        return self.found(model)[1]

    def is_own(self, model: str | None) -> bool:
        """Whether a model's counter is said to be its own, and not an estimate by another's."""
        return self._is_own and self._find(model or "")[0] is not self._rows[-1]

    async def load(self) -> None:
        """Load what counts, so that the first request need not wait for it.

        Raises:
            ConfigError: A counter cannot be loaded.
        """
        reached = [pattern for pattern, _, _ in self._rows].index("*") + 1
        for _, counter, _ in self._rows[:reached]:
            await counter.load()

    def _find(self, name: str) -> tuple[_Row, tuple[Counter, Profile]]:
        found = self._found.get(name)
        if found is None:
            row = next(row for row in self._rows if fnmatchcase(name, row[0]))
            found = row, (row[1], row[2] or _known_profile(name))
            if len(self._found) < MODELS_MAX:
                self._found[name] = found
        return found


def _known_profile(model: str) -> Profile:
    name = model.lower()
    return next(
        (known for pattern, known in _PROFILES if fnmatchcase(name, pattern)), OPENAI_PROFILE
    )


def _check_profile(profile: Any) -> None:
    if not isinstance(profile, Profile) or any(
        type(value) is not int or value < 0 for value in profile
    ):
        raise ConfigError(f"profile is {profile!r}; give a Profile of whole numbers of 0 or more")
