"""Saying no: one exception that becomes one answer."""

from collections.abc import Sequence

from starlette.types import Send

from inf_middleware.call.record import Call
from inf_middleware.wire import answers

Headers = Sequence[tuple[bytes, bytes]]


class Refuse(Exception):  # noqa: N818 - it is an answer, not a failure
    """Raised on the way in: the call ends here with this answer, and costs nothing."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Headers = (),
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers
        self.should_retry = should_retry


async def send_refusal(call: Call, refuse: Refuse, send: Send) -> None:
    """Send a refusal in the dialect of the call's path."""
    message = refuse.message
    help_url = call.parts.help_url
    if help_url and refuse.status in (401, 402, 429):
        message = f"{message} See {help_url}."
    status, headers, body = answers.error_response(
        call.dialect,
        status=refuse.status,
        code=refuse.code,
        message=message,
        request_id=call.id,
        param=refuse.param,
        headers=refuse.headers,
        should_retry=refuse.should_retry,
    )
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
