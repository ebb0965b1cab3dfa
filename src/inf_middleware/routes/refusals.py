"""Refusals of our own routes, in the one form that all refusals have."""

from collections.abc import Sequence
from typing import TypeAlias

from starlette.responses import Response

from inf_middleware.call.record import Parts
from inf_middleware.call.refuse import Refuse
from inf_middleware.domain.ids import uuid7
from inf_middleware.wire import answers
from inf_middleware.wire.dialects.unknown import UNKNOWN

Header: TypeAlias = tuple[bytes, bytes]


def request_id(parts: Parts) -> bytes:
    """Make the id that names a request in its answer."""
    return uuid7(parts.now_ns()).encode()


def refused(refuse: Refuse, parts: Parts, named: bytes, headers: Sequence[Header]) -> Response:
    """Return a refusal as JSON."""
    message = refuse.message
    if parts.help_url and refuse.status in (401, 402, 429):
        message = f"{message} See {parts.help_url}."
    status, all_headers, body = answers.error_response(
        UNKNOWN,
        status=refuse.status,
        code=refuse.code,
        message=message,
        request_id=named.decode(),
        param=refuse.param,
        headers=[*refuse.headers, *headers],
        should_retry=refuse.should_retry,
    )
    response = Response(body, status)
    response.raw_headers = all_headers
    return response
