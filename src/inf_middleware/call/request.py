"""What a call asks for: its body read and understood, and made to ask for usage."""

from collections.abc import Mapping

from inf_middleware.call.record import Call
from inf_middleware.call.refuse import Refuse
from inf_middleware.domain.errors import InvalidRequest
from inf_middleware.wire.dialect import Dialect
from inf_middleware.wire.intake import PLAIN

# What may stand before an object: white space, and the marks and zeros of UTF-8, -16 and -32.
_BEFORE_JSON = b" \t\r\n\0\xef\xbb\xbf\xfe\xff"

# Of one character, in UTF-32.
_UNIT_BYTES_MAX = 4

# Longer than any model's name; names go into records, logs and metrics.
MODEL_CHARACTERS_MAX = 256


def is_read(dialect: Dialect, headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether the body of a request is read whatever is in it.

    Raises:
        Refuse: It has to be read, and cannot be.
    """
    encoding = headers.get(b"content-encoding")
    is_plain = encoding is None or encoding.strip().lower() in PLAIN
    if dialect.reads_body:
        if is_plain:
            return True
        raise Refuse(
            400,
            "invalid_request_body",
            "The request body is compressed; send it without content-encoding.",
        )
    return is_plain and b"json" in headers.get(b"content-type", b"application/json").lower()


def may_be_json(body: bytes) -> bool:
    """Tell, by how it begins, whether a body may be a JSON object, whatever it is said to be.

    Servers read JSON under any name, and by it the model that is asked.
    """
    first = body.lstrip(_BEFORE_JSON)[:1]
    if not first:  # so far, and zeros alone are of no text: silence, or an empty disk
        return len(body) < _UNIT_BYTES_MAX or bool(body.strip(b"\0"))
    return first == b"{"


def understand(call: Call, body: bytes) -> None:
    """Note on the call its body, and what that asks for.

    Raises:
        Refuse: It cannot be meant.
    """
    dialect = call.dialect
    try:
        speaks, request = dialect.read(body)
    except InvalidRequest as error:
        raise Refuse(error.status, error.code, error.message) from error
    if speaks is not dialect:
        call.dialect = speaks
    call.body = body
    call.request = request
    call.model = model = request.model
    if model is not None and len(model) > MODEL_CHARACTERS_MAX:
        raise Refuse(
            400,
            "invalid_request_body",
            f"`model` has {len(model):,} characters; a model's name has at most"
            f" {MODEL_CHARACTERS_MAX}.",
            param="model",
        )


def asking(call: Call) -> bytes | None:
    """Return a body that asks for usage in the client's place, and note that; None where none is.

    Nothing was noted before.
    """
    request, body, asked = call.request, call.body, call.metering.include_usage
    if body is None or request is None or not request.may_ask or not asked:
        return None
    call.asked = asked
    return call.dialect.asking_for_usage(body, continuous=asked == "continuous")
