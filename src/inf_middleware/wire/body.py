"""JSON bodies: read as laxly as servers do, so that what a server accepts is never unmetered."""

import json
from typing import Any

import msgspec

from inf_middleware.domain.errors import InvalidRequest


class Head(msgspec.Struct):
    """The fields of a request that decide about it; the rest is skipped."""

    model: Any = None
    stream: Any = None
    stream_options: Any = None
    max_completion_tokens: Any = None
    max_tokens: Any = None
    n: Any = None


_head_decoder = msgspec.json.Decoder(Head)
_raw_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def read_head(body: bytes) -> Head:
    """Read a request's head.

    Raises:
        InvalidRequest: The body is no JSON object, by the laxest reading of it.
    """
    try:
        return _head_decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        fields = read_object(body)
    return Head(**{name: fields[name] for name in Head.__struct_fields__ if name in fields})


def read_object(body: bytes) -> dict[str, Any]:
    """Read a JSON object as Starlette's `request.json()` would: BOM, UTF-16, NaN and all.

    Raises:
        InvalidRequest: It is none.
    """
    if not body.strip():
        raise InvalidRequest("The request body is empty; send a JSON object.")
    try:
        value = json.loads(body)
    except RecursionError:
        raise InvalidRequest("The request body is nested too deeply.") from None
    except UnicodeError:
        raise InvalidRequest("The request body is not UTF-8; send a JSON object.") from None
    except ValueError as error:
        raise InvalidRequest(
            f"The request body is not JSON ({error}); send a JSON object."
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"The request body is a JSON {type(value).__name__}; send a JSON object."
        )
    return value


def asking_for_usage(body: bytes) -> bytes:
    """Add `stream_options.include_usage`; every other value keeps its very bytes."""
    try:
        fields = _raw_decoder.decode(body)
        raw = fields.get("stream_options")
        options = msgspec.json.decode(raw) if raw is not None else None
        asked = {**(options or {}), "include_usage": True}
        fields["stream_options"] = msgspec.Raw(msgspec.json.encode(asked))
        return msgspec.json.encode(fields)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        value = read_object(body)
        value["stream_options"] = {**(value.get("stream_options") or {}), "include_usage": True}
        return json.dumps(value).encode("ascii")


def whole_number(value: object) -> int | None:
    """Read a number as lax servers do ("5" and 5.0 are 5); None for what is none above 0."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        # Longer digit strings are no caps, and slow to convert.
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
    if isinstance(value, float):
        value = int(value) if value.is_integer() else None
    return value if isinstance(value, int) and value > 0 else None
