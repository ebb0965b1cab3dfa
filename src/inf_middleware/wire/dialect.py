"""What a dialect tells: where model, caps, usage and text sit in an API's requests and answers.

Readers are sans-IO and never raise on what a server sends: the worst case is a fact not known.
"""

import enum
from dataclasses import dataclass
from typing import Any, Protocol

from inf_middleware.domain.usage import Usage

# Output text kept for counting, of one answer: eight times the longest output known. What is
# beyond is only measured.
TEXT_BYTES_MAX = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """What a request asks for, as a lax server would read it.

    `output_cap` is the declared cap in tokens per choice, `choices` how many are asked for;
    neither is bounded here. `wants_usage`: the client itself asks its stream for usage. `may_ask`:
    we may ask in its place.
    """

    model: str | None = None
    stream: bool = False
    output_cap: int | None = None
    choices: int = 1
    wants_usage: bool = False
    may_ask: bool = False


class Seen(enum.IntFlag):
    """What an event of a stream was."""

    NOTHING = 0
    USAGE_ONLY = 1  # only usage: what a client that did not ask must not see
    END = 2  # the answer is whole with it


class AnswerReader(Protocol):
    """Reads one answer; `event` for each event of a stream, or `whole` once for a body.

    `usage` is the latest report; `usage_final` tells that it is of the whole answer. `failed`: an
    error stands in the answer. `has_output`: at least one token of output was seen.
    `text_overflow_bytes` of output came after more text than is kept.
    """

    usage: Usage | None
    usage_final: bool
    model: str | None
    response_id: str | None
    failed: bool
    has_output: bool
    text_overflow_bytes: int

    @property
    def output_so_far(self) -> int:
        """A lower estimate of the output tokens, got without counting any text."""
        ...

    def event(self, data: bytes, event: bytes | None) -> Seen:
        """Read the data and the `event` field of one event."""
        ...

    def whole(self, body: bytes) -> None:
        """Read a JSON body."""
        ...

    def texts(self) -> list[str]:
        """Return the output text of each choice."""
        ...


class Dialect(Protocol):
    """One API's places for model, caps, usage and text.

    `reads_body`: its requests are JSON and must be understood. `has_text`: input and output can be
    counted where no usage is told.
    """

    name: str
    reads_body: bool
    has_text: bool

    def read_request(self, body: bytes) -> Request:
        """Read a request's body.

        Raises:
            InvalidRequest: The body cannot be meant for this path.
        """
        ...

    def asking_for_usage(self, body: bytes) -> bytes:
        """Return the body with a request for usage added, all else as it was."""
        ...

    def input_fields(self, body: bytes) -> dict[str, Any]:
        """Return what of the body is input to the model, decoded; empty where nothing is."""
        ...

    def answer(self, request: Request) -> AnswerReader:
        """Return a reader for the answer to a request."""
        ...

    def error_body(self, message: str, *, type: str, code: str, param: str | None) -> bytes:  # noqa: A002
        """Return an error as the body of an answer."""
        ...

    def error_event(self, message: str, *, type: str, code: str) -> bytes:  # noqa: A002
        """Return an error as an event in a running stream."""
        ...
