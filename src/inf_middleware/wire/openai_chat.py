"""OpenAI chat completions, as OpenAI, vLLM, SGLang, llama.cpp and many others speak it.

Source: platform.openai.com/docs/api-reference/chat (2026-11); recorded answers of vLLM 0.33.0,
llama-cpp-python 0.3.36 and transformers 5.23.0.
"""

from typing import Any

import msgspec

from inf_middleware.domain.errors import InvalidRequest
from inf_middleware.domain.usage import Usage, token_count
from inf_middleware.wire.body import asking_for_usage, read_head, read_object, whole_number
from inf_middleware.wire.dialect import TEXT_BYTES_MAX, Request, Seen

_INPUT_FIELDS = ("messages", "tools", "functions", "response_format")

_DONE = b"[DONE]"


class _Function(msgspec.Struct):
    name: Any = None
    arguments: Any = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: Any = None
    reasoning: Any = None
    reasoning_content: Any = None
    refusal: Any = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None


class _Choice(msgspec.Struct):
    index: Any = 0
    delta: _Message | None = None
    message: _Message | None = None
    finish_reason: Any = None


class _Answer(msgspec.Struct):
    id: Any = None
    model: Any = None
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Answer)


class OpenAIChat:
    """The dialect of `/v1/chat/completions`."""

    name = "openai.chat"
    reads_body = True
    has_text = True

    def read_request(self, body: bytes) -> Request:
        """Read a request's head; its messages are left alone."""
        head = read_head(body)
        options = head.stream_options
        wants = isinstance(options, dict) and options.get("include_usage") is True
        return Request(
            model=head.model if isinstance(head.model, str) else None,
            stream=head.stream is True,
            output_cap=whole_number(head.max_completion_tokens) or whole_number(head.max_tokens),
            choices=whole_number(head.n) or 1,
            wants_usage=wants,
            may_ask=head.stream is True
            and not wants
            and (options is None or isinstance(options, dict)),
        )

    def asking_for_usage(self, body: bytes) -> bytes:
        """Return the body with `stream_options.include_usage` set."""
        return asking_for_usage(body)

    def input_fields(self, body: bytes) -> dict[str, Any]:
        """Return messages, tools and the like."""
        try:
            fields = msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            try:
                fields = read_object(body)
            except InvalidRequest:
                return {}
        if not isinstance(fields, dict):
            return {}
        return {name: fields[name] for name in _INPUT_FIELDS if name in fields}

    def answer(self, request: Request) -> "ChatReader":
        """Return a reader for one answer."""
        return ChatReader(request.choices)

    def error_body(self, message: str, *, type: str, code: str, param: str | None) -> bytes:  # noqa: A002
        """Return an error in the form that serves every SDK seen."""
        error = {"message": message, "type": type, "param": param, "code": code}
        return msgspec.json.encode({"type": "error", "error": error})

    def error_event(self, message: str, *, type: str, code: str) -> bytes:  # noqa: A002
        """Return an error as the `openai` SDK raises it in a stream."""
        error = {"message": message, "type": type, "param": None, "code": code}
        return b"data: " + msgspec.json.encode({"error": error}) + b"\n\n"


class ChatReader:
    """Reads one chat completion."""

    __slots__ = (
        "_choices",
        "_finished",
        "_pieces",
        "_text_bytes",
        "_text_pieces",
        "failed",
        "has_output",
        "model",
        "response_id",
        "text_overflow_bytes",
        "usage",
        "usage_final",
    )

    def __init__(self, choices: int) -> None:
        self._choices = choices
        self._finished: set[int] = set()
        self._pieces: dict[int, list[str]] = {}
        self._text_bytes = 0
        self._text_pieces = 0
        self.usage: Usage | None = None
        self.usage_final = False
        self.model: str | None = None
        self.response_id: str | None = None
        self.failed = False
        self.has_output = False
        self.text_overflow_bytes = 0

    @property
    def output_so_far(self) -> int:
        """A piece of text is a token at least, but for servers that send single characters."""
        return self.usage.output_tokens if self.usage else self._text_pieces

    def event(self, data: bytes, event: bytes | None) -> Seen:
        """Read one chunk."""
        if data == _DONE:
            return Seen.END
        answer = self._decode(data)
        if answer is None:
            return Seen.NOTHING
        self._take(answer)
        usage = usage_of(answer.usage)
        if usage is None:
            # An object that tells nothing is still our own chunk, not one for the client.
            is_chunk = answer.choices == [] and isinstance(answer.usage, dict)
            return Seen.USAGE_ONLY if is_chunk else Seen.NOTHING
        self.usage = usage
        if not answer.choices:
            self.usage_final = True
            return Seen.USAGE_ONLY | Seen.END
        # Running totals are per choice: only with the last one finished are they of the whole.
        self.usage_final = len(self._finished) >= self._choices
        return Seen.END if self.usage_final else Seen.NOTHING

    def whole(self, body: bytes) -> None:
        """Read a whole completion."""
        answer = self._decode(body)
        if answer is None:
            return
        self._take(answer)
        self.usage = usage_of(answer.usage)
        self.usage_final = self.usage is not None

    def texts(self) -> list[str]:
        """Return the output text of each choice, joined."""
        return ["".join(pieces) for pieces in self._pieces.values()]

    def _decode(self, data: bytes) -> _Answer | None:
        try:
            return _decoder.decode(data)
        except msgspec.ValidationError:
            return self._decode_odd(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None

    def _decode_odd(self, data: bytes) -> _Answer | None:
        # Some part has a shape unknown to us: keep what tells about money.
        try:
            value = msgspec.json.decode(data)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return None
        if not isinstance(value, dict):
            return None
        choices: list[_Choice] | None
        try:
            choices = msgspec.convert(value.get("choices"), list[_Choice] | None)
        except (msgspec.ValidationError, RecursionError):
            choices = [_Choice()]
        return _Answer(
            value.get("id"), value.get("model"), choices, value.get("usage"), value.get("error")
        )

    def _take(self, answer: _Answer) -> None:
        if self.response_id is None and isinstance(answer.id, str):
            self.response_id = answer.id
        if self.model is None and isinstance(answer.model, str):
            self.model = answer.model
        if answer.error is not None:
            self.failed = True
        for choice in answer.choices or ():
            index = choice.index if type(choice.index) is int else 0
            if choice.finish_reason is not None:
                self._finished.add(index)
            message = choice.delta or choice.message
            if message is not None:
                self._take_message(index, message)

    def _take_message(self, index: int, message: _Message) -> None:
        self._take_text(index, message.content)
        self._take_text(index, message.reasoning_content or message.reasoning)
        self._take_text(index, message.refusal)
        for call in message.tool_calls or ():
            self._take_function(index, call.function)
        self._take_function(index, message.function_call)

    def _take_function(self, index: int, function: _Function | None) -> None:
        if function is not None:
            self._take_text(index, function.name)
            self._take_text(index, function.arguments)

    def _take_text(self, index: int, text: object) -> None:
        if isinstance(text, list):
            for part in text:
                self._take_text(index, part.get("text") if isinstance(part, dict) else None)
            return
        if not isinstance(text, str) or not text:
            return
        self.has_output = True
        self._text_pieces += 1
        self._text_bytes += len(text)
        if self._text_bytes > TEXT_BYTES_MAX:
            self.text_overflow_bytes += len(text)
            return
        self._pieces.setdefault(index, []).append(text)


def usage_of(value: object) -> Usage | None:
    """Read a usage object in OpenAI's words; None where it tells no token count.

    Cached and written parts are inside `prompt_tokens`, reasoning inside `completion_tokens`.
    """
    if not isinstance(value, dict):
        return None
    inputs = token_count(value.get("prompt_tokens"))
    outputs = token_count(value.get("completion_tokens"))
    if inputs is None and outputs is None:
        return None
    inputs, outputs = inputs or 0, outputs or 0
    of_input = _details(value, "prompt_tokens_details")
    of_output = _details(value, "completion_tokens_details")
    written = token_count(of_input.get("cache_write_tokens"))
    if written is None:
        written = token_count(of_input.get("created_cache_tokens"))
    reasoning = token_count(of_output.get("reasoning_tokens"))
    if reasoning is None:
        reasoning = token_count(value.get("reasoning_tokens"))
    return Usage(
        input_tokens=inputs,
        output_tokens=outputs,
        cached_input_tokens=min(token_count(of_input.get("cached_tokens")) or 0, inputs),
        cache_write_tokens=min(written or 0, inputs),
        reasoning_tokens=min(reasoning or 0, outputs),
    )


def _details(value: dict[str, Any], name: str) -> dict[str, Any]:
    details = value.get(name)
    return details if isinstance(details, dict) else {}
