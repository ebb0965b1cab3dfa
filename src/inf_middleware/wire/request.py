"""What a request asks for, as a lax server would read it."""

import msgspec

# What servers take for a truth value, beside true and false.
# Source: pydantic, "Conversion Table" and "Booleans" (2026-11), by which vLLM and SGLang read.
_YES = ("1", "on", "t", "true", "y", "yes", 1)
_NO = ("0", "off", "f", "false", "n", "no", 0)


class StreamOptions(msgspec.Struct, frozen=True, gc=False):
    """What a stream is asked to be, of which only this is read."""

    include_usage: bool | msgspec.UnsetType | None = msgspec.UNSET


class Request(msgspec.Struct, frozen=True, gc=False):
    """What a request asks for, as a lax server would read it.

    `output_cap` is the declared cap in tokens of one candidate. `choices`: how many the answer
    has, of all `prompts` together; `best_of`: how many candidates of each prompt are made, where
    that is more. None of them is bounded here. `echo`: the answer repeats the prompt.
    `wants_usage`: the client itself asks its stream for usage. `may_ask`: we may ask in its place.
    `background`: the answer is made later, and fetched.
    """

    model: str | None = None
    stream: bool = False
    output_cap: int | None = None
    choices: int = 1
    prompts: int = 1
    best_of: int = 1
    echo: bool = False
    wants_usage: bool = False
    may_ask: bool = False
    background: bool = False

    @property
    def candidates(self) -> int:
        """How many outputs the model makes."""
        if self.best_of == 1:  # as nearly always; and of each prompt there is a choice
            return self.choices
        return max(self.choices, self.best_of * self.prompts)


def usage_wanted(options: object) -> tuple[bool, bool]:
    """Tell whether a stream's options ask for its usage, and whether we may ask in their place.

    Options that do not say are left alone: vLLM's have it on by default, OpenAI's off, and what a
    server sends unasked is its client's.
    """
    if isinstance(options, StreamOptions):
        given: object = options.include_usage
    elif isinstance(options, dict):
        given = options.get("include_usage", msgspec.UNSET)
    else:
        given = None if options is None else msgspec.UNSET
    if is_yes(given):
        return True, False
    return False, given is None or _word(given) in _NO


def is_yes(value: object) -> bool:
    """Tell whether a server takes a value for true."""
    return _word(value) in _YES  # True is 1


def _word(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def prompts_of(prompt: object) -> int:
    """Count the prompts of a list; token ids are one prompt."""
    if not isinstance(prompt, list) or not prompt or type(prompt[0]) is int:
        return 1
    return len(prompt)
