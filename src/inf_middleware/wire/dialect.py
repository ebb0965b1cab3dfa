"""What a dialect is: where model, input, caps, stream, usage and text sit in an API, as data."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import msgspec

from inf_middleware.domain.errors import ConfigError, InvalidRequest
from inf_middleware.wire.body import (
    ODD,
    Fields,
    asking_for_usage,
    names_of,
    typed_head,
    whole_number,
)
from inf_middleware.wire.form import Answers
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.request import Request, StreamOptions, is_yes, prompts_of, usage_wanted
from inf_middleware.wire.told import Told

ErrorForm = Literal["openai", "anthropic", "ollama"]

# Anthropic's words for what OpenAI calls otherwise.
# Source: docs.anthropic.com/en/api/errors (2026-11).
_ANTHROPIC_TYPES = {"server_error": "api_error"}


# Requests that each dialect keeps for those that ask for the same. What comes from callers and is
# kept is short: others are read anew each time.
REQUESTS_MAX = 512
_Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
_Number: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


# What models may be able to do beside text, in the words of the price list.
FUNCTION_CALLS, STRUCTURED_OUTPUT = "function calls", "structured output"


class Input(NamedTuple):
    """What of a body is input to the model, decoded.

    `messages` are of chats, `texts` strings, token ids or lists of these; `schemas` are counted as
    the JSON they are.
    """

    messages: tuple[Any, ...] = ()
    texts: tuple[Any, ...] = ()
    schemas: tuple[Any, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """One API, described. Paths are dotted ("options.num_predict"); see `wire.paths`.

    `paths`: ends of the URL paths that speak it ("/v1/ask"). `methods`: those that ask for work;
    by all others everybody passes. `reads_body`: its requests are JSON
    and refused where they are none; else they pass unread.

    Of a request: `messages`, `texts` and `schemas` are input (see `Input`); the largest of
    `output_cap` and of `choices` ("n|n_cmpl") that tells holds; `choices` and `best_of` are numbers
    of answers; `prompts` may be a list, each element of which is answered for itself; `streams`
    tells that a request that does not say is streamed; `asks_usage`: it knows
    `stream_options.include_usage`; `tells_usage` is a field of its own that asks a stream for its
    usage. `generates`: tokens come out, not only in. `background` asks for an answer that is
    fetched later. `features`: which fields ask for what a model must be able to do.
    `truncation`: fields that let the server shorten the input to its context ("": it always does).

    `folds_names`: there are servers of it that take a field's name in any letters (Go's JSON): one
    that is written otherwise is refused, or what is metered would be another field than the one
    that holds.

    `variants`: other dialects that share the path, by the first field that the body has. `also`:
    other forms in which a server on this path may answer. Which it is the answer itself tells, for
    servers pass over fields that they do not know.

    Raises:
        ConfigError: A path that does not start with a slash.
    """

    name: str
    paths: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("POST",)
    reads_body: bool = True
    model: str = "model"
    messages: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    output_cap: tuple[str, ...] = ()
    choices: str = ""
    best_of: str = ""
    prompts: str = ""
    echo: str = ""
    stream: str = "stream"
    streams: bool = False
    asks_usage: bool = False
    tells_usage: str = ""
    background: str = ""
    generates: bool = True
    features: tuple[tuple[str, str], ...] = ()
    truncation: tuple[str, ...] = ()
    answers: Answers = field(default_factory=Answers)
    errors: ErrorForm = "openai"
    folds_names: bool = False
    variants: tuple[tuple[str, "Dialect"], ...] = ()
    also: tuple[Answers, ...] = ()

    def __post_init__(self) -> None:
        for path in self.paths:
            if not isinstance(path, str) or not path.startswith("/") or path == "/":
                raise ConfigError(
                    f"dialect {self.name}: path {path!r} must be the end of a URL path: /v1/ask"
                )

    @property
    def has_text(self) -> bool:
        """Whether input and output can be counted where no usage is told."""
        return bool(self.messages or self.texts)

    @property
    def input_name(self) -> str:
        """The field of a request that holds its input, for errors."""
        return next(iter((*self.messages, *self.texts)), "messages")

    def read(self, body: bytes) -> tuple["Dialect", Request]:
        """Read a request's body; return the variant that it speaks, and what it asks for.

        Raises:
            InvalidRequest: The body cannot be meant for this path.
        """
        if self.folds_names:
            self._refuse_other_letters(body)
        if self._typed is not None:
            head, request_of = self._typed
            try:
                return self, request_of(head(body))
            except ODD:
                pass  # a server may still take it: it is read as laxly
        try:
            fields = Fields(body)
            speaks = next((other for name, other in self._speaking if name in fields), self)
            request = speaks._request(*map(fields.at, speaks._asked))
            return speaks, request if speaks is self else self._with_largest_cap(request, fields)
        except InvalidRequest:
            if self.reads_body:
                raise
            return self, Request()

    def _refuse_other_letters(self, body: bytes) -> None:
        known = self._names
        for name in names_of(body):
            if name not in known and name.casefold() in known:
                raise InvalidRequest(
                    f"The field {name!r} is `{name.casefold()}` in other letters; write it as the"
                    " API does."
                )

    @cached_property
    def _names(self) -> frozenset[str]:
        paths = (*self._asked, *self.messages, *self.texts, *self.schemas)
        return frozenset(path.partition(".")[0] for path in paths if path)

    @cached_property
    def _family(self) -> tuple["Dialect", ...]:
        return (self, *(other for _, other in self.variants))

    @cached_property
    def _forms(self) -> tuple[Answers, ...]:
        """The forms in which an answer may come beside its own."""
        others = (*(one.answers for one in self._family), *self.also)
        return tuple(form for form in others if form is not self.answers)

    @cached_property
    def _speaking(self) -> tuple[tuple[str, "Dialect"], ...]:
        """The variants, each with what else on this path is input, asks for more, or answers.

        Which of them a server speaks no field can tell: a client may send any.
        """
        return tuple((name, self._joined(other)) for name, other in self.variants)

    def _joined(self, variant: "Dialect") -> "Dialect":
        every = (variant, *self._family)

        def all_of(name: str) -> tuple[Any, ...]:
            return tuple(dict.fromkeys(path for one in every for path in getattr(one, name)))

        def first_of(name: str) -> str:
            return next(filter(None, (getattr(one, name) for one in every)), "")

        return replace(
            variant,
            messages=all_of("messages"),
            texts=all_of("texts"),
            schemas=all_of("schemas"),
            features=all_of("features"),
            truncation=all_of("truncation"),
            choices="|".join(dict.fromkeys(path for one in every for path in one._choices_at)),
            best_of=first_of("best_of"),
            prompts=first_of("prompts"),
            echo=first_of("echo"),
            asks_usage=any(one.asks_usage for one in every),
            also=(self.answers, *self._forms),
        )

    def _with_largest_cap(self, request: Request, fields: Fields) -> Request:
        """Return a request of a variant with the largest cap that any server may go by."""
        if request.output_cap is None:
            return request
        paths = [path for one in self._family for path in one.output_cap]
        cap = _cap_of([fields.at(path) for path in paths])
        return msgspec.structs.replace(request, output_cap=cap)

    @cached_property
    def _asked(self) -> tuple[str, ...]:
        """The paths of what `_request` takes, in its order; "" where the API has no such field."""
        options = "stream_options" if self.asks_usage else ""
        paths = (self.model, self.stream, self.prompts, self.best_of, self.echo, self.background)
        return (*paths, options, self.tells_usage, *self._choices_at, *self.output_cap)

    @cached_property
    def _choices_at(self) -> tuple[str, ...]:
        return tuple(self.choices.split("|")) if self.choices else ()

    @cached_property
    def _typed(self) -> tuple[Callable[[bytes], Hashable], Callable[[Hashable], Request]] | None:
        """What reads `_asked` at once, where all is of its kind, and what makes that a request.

        None where `prompts` are asked for, which may be long.
        """
        if self.variants or self.prompts:
            return None
        yes_or_no = (bool, bool, StreamOptions, bool)  # from `echo` on
        numbers = [_Number for _ in (*self._choices_at, *self.output_cap)]
        kinds = (_Name, bool, None, _Number, *yes_or_no, *numbers)
        typed = typed_head(tuple(zip(self._asked, kinds, strict=True)))
        if typed is None:
            return None
        head, pick = typed
        # Most callers ask the same again but for their messages.
        return head, lru_cache(REQUESTS_MAX)(lambda asked: self._request(*pick(asked)))

    def read_request(self, body: bytes) -> Request:
        """Read a request's body.

        Raises:
            InvalidRequest: The body cannot be meant for this path.
        """
        return self.read(body)[1]

    def _request(
        self,
        model: object,
        stream: object,
        prompt: object,
        best_of: object,
        echo: object,
        background: object,
        options: object,
        tells_usage: object,
        *numbers: object,
    ) -> Request:
        streamed = is_yes(stream) or (self.streams and stream is None)
        choices_told, caps_told = numbers[: len(self._choices_at)], numbers[len(self._choices_at) :]
        prompts = 1 if prompt is None else prompts_of(prompt)
        wants, may_ask = usage_wanted(options)
        if self.tells_usage:
            wants = is_yes(tells_usage)
        return Request(
            model if isinstance(model, str) else None,
            streamed,
            _cap_of(caps_told),
            (_largest(choices_told) or 1) * prompts,
            prompts,
            1 if best_of is None else whole_number(best_of) or 1,
            is_yes(echo),
            wants,
            may_ask and self.asks_usage and streamed,
            is_yes(background),
        )

    def features_asked(self, body: bytes) -> list[tuple[str, str]]:
        """Return the fields of a request that ask for features, each with its feature."""
        try:
            fields = Fields(body)
            return [(path, what) for path, what in self.features if _asks(fields.get(path))]
        except InvalidRequest:
            return []

    def truncates(self, body: bytes) -> bool:
        """Tell whether the server may shorten the input of a request to its context."""
        if "" in self.truncation:
            return True
        try:
            fields = Fields(body)
            return any(
                fields.get(path) not in (None, False, "disabled") for path in self.truncation
            )
        except InvalidRequest:
            return False

    def asking_for_usage(self, body: bytes, *, continuous: bool = False) -> bytes:
        """Return the body with a request for usage added, all else as it was."""
        return asking_for_usage(body, continuous=continuous)

    def input_of(self, body: bytes) -> Input:
        """Return what of the body is input to the model; empty where nothing is."""
        try:
            fields = Fields(body)
            return Input(
                *(
                    tuple(value for path in paths if (value := fields.get(path)) is not None)
                    for paths in (self.messages, self.texts, self.schemas)
                )
            )
        except InvalidRequest:
            return Input()

    def answer(self, request: Request) -> AnswerReader:
        """Return a reader for the answer to a request."""
        reader = AnswerReader(self.answers, request.choices, request.prompts, self._forms)
        reader.awaits_report = request.wants_usage
        return reader

    def read_whole(self, request: Request, body: bytes) -> AnswerReader | Told:
        """Return what the answer to a request tells that is no stream, and there as a whole."""
        read = self.answers.told
        if self.answers.may_tell_apart(request.choices, body):
            read = None
        told = None if read is None else read(body)
        if told is not None:
            return told
        reader = self.answer(request)
        reader.whole(body)
        return reader

    def error_body(self, message: str, *, type: str, code: str, param: str | None) -> bytes:  # noqa: A002
        """Return an error as the body of an answer."""
        if self.errors == "anthropic":
            return _anthropic_error(message, type)
        # This form serves every SDK seen.
        error = {"message": message, "type": type, "param": param, "code": code}
        return msgspec.json.encode({"type": "error", "error": error})

    def error_event(self, message: str, *, type: str, code: str) -> bytes:  # noqa: A002
        """Return an error as an event in a running stream."""
        if self.errors == "anthropic":  # its SDK reads no event without a name
            return b"event: error\ndata: " + _anthropic_error(message, type) + b"\n\n"
        if self.errors == "ollama":
            return msgspec.json.encode({"error": message}) + b"\n"
        error = {"message": message, "type": type, "param": None, "code": code}
        return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"


def _anthropic_error(message: str, type_: str) -> bytes:
    error = {"type": _ANTHROPIC_TYPES.get(type_, type_), "message": message}
    return msgspec.json.encode({"type": "error", "error": error})


def _largest(numbers: Sequence[object]) -> int | None:
    """Return the largest number, for servers do not agree which of several holds; None for none."""
    return max((whole_number(given) or 0 for given in numbers), default=0) or None


def _cap_of(numbers: Sequence[object]) -> int | None:
    """Return the largest cap; None where a server may go by none (llama.cpp: -1)."""
    for given in numbers:
        if isinstance(given, int | float) and given < 0:
            return None
    return _largest(numbers)


def _asks(value: object) -> bool:
    # {"type": "text"} is how APIs write that no form is asked for.
    return bool(value) and not (isinstance(value, dict) and value.get("type") == "text")
