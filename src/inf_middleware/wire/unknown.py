"""Any other POST: metered by the usage object in its answer, where it has one."""

from typing import Any

import msgspec

from inf_middleware.domain.errors import InvalidRequest
from inf_middleware.domain.usage import Usage, token_count
from inf_middleware.wire.body import read_head
from inf_middleware.wire.dialect import Request, Seen
from inf_middleware.wire.openai_chat import OpenAIChat

_TERMINAL = {b"message_stop", b"response.completed", b"response.incomplete", b"response.failed"}


class Unknown(OpenAIChat):
    """The dialect of paths that no other claims: lenient with requests, blind to text."""

    name = "unknown"
    reads_body = False
    has_text = False

    def read_request(self, body: bytes) -> Request:
        """Read model and stream where the body is a JSON object; never raises."""
        try:
            head = read_head(body)
        except InvalidRequest:
            return Request()
        return Request(
            model=head.model if isinstance(head.model, str) else None, stream=head.stream is True
        )

    def input_fields(self, body: bytes) -> dict[str, Any]:
        """Return nothing: where the text sits is not known."""
        return {}

    def answer(self, request: Request) -> "UnknownReader":  # type: ignore[override]
        """Return a reader that looks for usage only."""
        return UnknownReader()


class _Answer(msgspec.Struct):
    id: Any = None
    model: Any = None
    type: Any = None
    usage: Any = None
    error: Any = None
    message: Any = None
    response: Any = None


_decoder = msgspec.json.Decoder(_Answer)


class UnknownReader:
    """Finds usage in either vocabulary; what a later report tells replaces, field by field."""

    def __init__(self) -> None:
        self._told: dict[str, int] = {}
        self.usage: Usage | None = None
        self.usage_final = False
        self.model: str | None = None
        self.response_id: str | None = None
        self.failed = False
        self.has_output = False
        self.text_overflow_bytes = 0

    @property
    def output_so_far(self) -> int:
        """What was told, for text is not known."""
        return self.usage.output_tokens if self.usage else 0

    def event(self, data: bytes, event: bytes | None) -> Seen:
        """Read one event."""
        if data == b"[DONE]":
            return Seen.END
        answer = self._take(data)
        kind = answer.type if answer is not None else None
        terminal = event in _TERMINAL or (isinstance(kind, str) and kind.encode() in _TERMINAL)
        return Seen.END if terminal else Seen.NOTHING

    def whole(self, body: bytes) -> None:
        """Read a JSON body."""
        self._take(body)

    def texts(self) -> list[str]:
        """Return nothing: where the text sits is not known."""
        return []

    def _take(self, data: bytes) -> _Answer | None:
        try:
            answer = _decoder.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None
        inner = [part for part in (answer.message, answer.response) if isinstance(part, dict)]
        for part in inner:
            self._name(part.get("id"), part.get("model"))
            self._report(part.get("usage"))
        self._name(answer.id, answer.model)
        self._report(answer.usage)
        if answer.error is not None or answer.type == "error":
            self.failed = True
        return answer

    def _name(self, response_id: object, model: object) -> None:
        if self.response_id is None and isinstance(response_id, str):
            self.response_id = response_id
        if self.model is None and isinstance(model, str):
            self.model = model

    def _report(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        told = {
            name: count
            for name, value in usage.items()
            if (count := token_count(value)) is not None
        }
        if not told.keys() & _COUNTS:
            return
        self._told.update(told)
        self.usage = _usage_of(self._told)
        self.usage_final = True
        self.has_output = self.usage.output_tokens > 0


_COUNTS = {"prompt_tokens", "completion_tokens", "input_tokens", "output_tokens"}


def _usage_of(told: dict[str, int]) -> Usage:
    inputs = told.get("input_tokens", told.get("prompt_tokens", 0))
    # Anthropic's words: there the cache is extra to `input_tokens`.
    cached = told.get("cache_read_input_tokens", 0)
    written = told.get("cache_creation_input_tokens", 0)
    return Usage(
        input_tokens=inputs + cached + written,
        output_tokens=told.get("output_tokens", told.get("completion_tokens", 0)),
        cached_input_tokens=cached,
        cache_write_tokens=written,
    )
