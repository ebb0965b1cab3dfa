"""What a call asks for: its body read and understood, and made to ask for usage."""

from collections.abc import Mapping

from starlette.types import Receive

from inf_middleware.call.body import read_body
from inf_middleware.call.record import Call
from inf_middleware.call.refuse import Refuse
from inf_middleware.domain.errors import InvalidRequest
from inf_middleware.wire.dialect import Request

# Longer than any model's name; names go into records, logs and metrics.
MODEL_CHARACTERS_MAX = 256


async def read_request(
    call: Call, headers: Mapping[bytes, bytes], receive: Receive, body_bytes_max: int
) -> bytes | None:
    """Read the body and what it asks for; None where it passes unread.

    Raises:
        Refuse: It is not what the path needs, or over its bound.
        ClientGone: The client left meanwhile.
    """
    dialect = call.dialect
    if not dialect.reads_body and not _is_json(headers):
        call.request = Request()
        return None
    encoding = headers.get(b"content-encoding", b"")
    if encoding and encoding.strip().lower() not in (b"", b"identity"):
        if not dialect.reads_body:
            call.request = Request()
            return None
        raise Refuse(
            400,
            "invalid_request_body",
            "The request body is compressed; send it without content-encoding.",
        )
    body = call.body = await read_body(headers.get(b"content-length"), receive, body_bytes_max)
    call.is_read = True
    understand(call, body)
    if call.model is not None and len(call.model) > MODEL_CHARACTERS_MAX:
        raise Refuse(
            400,
            "invalid_request_body",
            f"`model` has {len(call.model):,} characters; a model's name has at most"
            f" {MODEL_CHARACTERS_MAX}.",
            param="model",
        )
    return body


def understand(call: Call, body: bytes) -> None:
    """Note on the call what its body asks for.

    Raises:
        Refuse: It cannot be meant.
    """
    try:
        call.dialect, request = call.dialect.read(body)
    except InvalidRequest as error:
        raise Refuse(error.status, error.code, error.message) from error
    call.request = request
    call.model = request.model


def asking(call: Call, body: bytes) -> bytes:
    """Return the body that the app is to see, and note on the call whether it asks for usage."""
    request = call.request
    if request is None or not request.may_ask:
        call.asked = False
        return body
    call.asked = call.metering.include_usage
    if not call.asked:
        return body
    return call.dialect.asking_for_usage(body, continuous=call.asked == "continuous")


def _is_json(headers: Mapping[bytes, bytes]) -> bool:
    content_type = headers.get(b"content-type", b"application/json")
    return b"json" in content_type.lower()
