"""The answer on its way out: each message is read, then forwarded, in the same await.

What goes out are the very bytes that came in, less only the usage that we asked for. The call is
settled before the message that ends the answer leaves. That message is the one that completes
`content-length`; else the one with the dialect's terminal event or its final usage; else the
closing one (a `BaseHTTPMiddleware` in the app sends whole JSON with `more_body=True` and an empty
message after it). The start of an answer that is no stream waits for its first body message, so
that a settlement that fails can still become a 503.
"""

from collections.abc import Awaitable, Callable, Sequence

from starlette.types import Message, Scope, Send

from inf_middleware.call.drain import drains
from inf_middleware.call.record import Asked, Call
from inf_middleware.call.refuse import Refuse, send_refusal
from inf_middleware.call.start import read_headers, with_ours
from inf_middleware.call.stream import Stream, reader_for, stream_of
from inf_middleware.wire.alike import Alike
from inf_middleware.wire.answers import Header, retry_headers
from inf_middleware.wire.ending import clean_end
from inf_middleware.wire.intake import JSON_BYTES_MAX, PLAIN, Intake, cutter_of, intake_by
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.sse import SSEReader

LEDGER_MESSAGE = "The call could not be recorded and is not billed; try again shortly."


class Answer:
    """Reads one answer for a call and forwards it.

    `strip` takes out the usage that we asked for; `settle` is awaited once before the end leaves
    (None: somebody further out settles); `headers` are added to the start. `is_complete`: the end
    of the body was seen.
    """

    __slots__ = (
        "_alike",
        "_call",
        "_direct",
        "_ended",
        "_headers",
        "_held",
        "_intake",
        "_is_over",
        "_is_read",
        "_length",
        "_passed",
        "_scope",
        "_server_send",
        "_settle",
        "_stream",
        "_strip",
        "is_complete",
    )

    def __init__(
        self,
        call: Call,
        scope: Scope,
        send: Send,
        strip: Asked,
        settle: Callable[[Call], Awaitable[bool]] | None,
        headers: Sequence[Header],
    ) -> None:
        self._call = call
        self._scope = scope
        self._server_send = send
        self._strip = strip
        self._settle = settle
        self._headers = headers
        self._held: Message | None = None  # the start of an answer that is no stream
        self._stream: Stream | None = None
        self._alike: Alike | None = None  # what takes more text of a stream, and nothing else
        self._direct: Send | None = None  # takes chunks where a send that fails tells nothing
        self._is_read = False  # it is no stream, and holds facts that nobody else reads
        self._intake: Intake | None = None  # of such an answer that does not come whole at once
        self._length: int | None = None
        self._passed = 0  # body bytes seen of an answer that is no stream
        self.is_complete = False
        self._ended = False  # the end of the answer was reached, and is settled
        self._is_over = False  # nothing more of the app's answer goes out

    def send(self, message: Message) -> Awaitable[None]:
        """Take one message from the app; what is returned sends what goes out of it."""
        alike = self._alike
        if alike is not None:  # first and in place: so are nearly all chunks of a stream
            try:
                is_taken = message["more_body"] and alike.takes(message["body"])
            except KeyError:  # both may be left out
                is_taken = False
            if is_taken:
                direct = self._direct
                return self._send(message) if direct is None else direct(message)
        return self._take(message)

    async def _take(self, message: Message) -> None:
        if self._is_over:
            if self._call.exhausted:
                raise OSError("the stream was ended: the balance is used up")  # as of a client gone
            return
        kind = message["type"]
        if kind == "http.response.start":
            start = self._start(message)
            if start is not None:
                await self._send(start)
            return
        if kind == "http.response.body":
            if self._stream is not None:
                out = await self._read_part(message, self._stream)
                if out is None:
                    return
                message = out
            elif not self._ended and self._read_whole(message) and not await self._end():
                await self._send_unrecorded()
                return
        held, self._held = self._held, None
        if self._call.draining:
            return
        try:
            if held is not None:
                await self._server_send(held)
            await self._server_send(message)
        except OSError:
            if not self._drains():
                raise

    async def finish(self) -> None:
        """Send what is still held back of an answer that is not complete, after its app."""
        held, self._held = self._held, None
        if held is not None:
            await self._send(held)
        self.read_what_came()
        if self._stream is not None and not self.is_complete:
            body = self._stream.rest()
            if body:
                await self._send({"type": "http.response.body", "body": body, "more_body": True})

    def read_what_came(self) -> None:
        """Read what there is of an answer that is no stream and did not come to its end."""
        if self._passed:
            self._call.begun = True
        if not self._is_read or self._ended:
            return
        if self._intake is None:
            reader_for(self._call)
        elif self._passed:
            self._intake.close()

    async def _send(self, message: Message) -> None:
        if self._call.draining:
            return
        try:
            await self._server_send(message)
        except OSError:
            if not self._drains():
                raise

    def _drains(self) -> bool:
        """Take note that a send failed: so servers of ASGI 2.4 and later tell of a disconnect."""
        call = self._call
        if call.ended:
            return False
        call.disconnected = True
        return self._settle is not None and drains.begin(call)

    def _start(self, message: Message) -> Message | None:
        """Read the start of the answer; return what of it goes out now."""
        call = self._call
        status = message["status"]
        if call.status is None:  # what is further in sees what the app itself sent
            call.status = status
        headers = message.get("headers", ())
        content_type, coding, self._length, is_shared = read_headers(headers)
        cutter = cutter_of(content_type)
        if status < 400 and cutter is not None:
            if cutter:
                stream = self._stream = stream_of(call, self._strip, cutter, coding)
                headers = stream.headers(headers)
                if not _tells_by_raising(self._scope) and not drains.may_begin(call):
                    self._direct = self._server_send
            elif call.reader is None:
                self._is_read = True
                if coding not in PLAIN:
                    self._intake = intake_by(reader_for(call), cutter, coding)
        ours = self._headers
        start = dict(message)
        start["headers"] = with_ours(list(headers), ours) if is_shared else [*headers, *ours]
        if self._stream is not None or cutter is SSEReader:
            return start
        self._held = start
        return None

    def _read_whole(self, message: Message) -> bool:
        """Read a message of an answer that is no stream; tell whether that is whole with it."""
        body = message.get("body", b"")
        passed = self._passed = self._passed + len(body)
        complete = not message.get("more_body", False)
        if self._length is not None and passed >= self._length:
            complete = True
        if self._is_read:
            self._read_piece(bytes(body), complete)
        if complete:
            self.is_complete = True
        return complete

    def _read_piece(self, body: bytes, complete: bool) -> None:
        """Read a body, or a piece of it; nearly all come in one."""
        call, intake = self._call, self._intake
        if intake is None:
            if complete and len(body) <= JSON_BYTES_MAX:
                assert call.request is not None
                call.reader = call.dialect.read_whole(call.request, body)
                return
            intake = self._intake = intake_by(reader_for(call), False, b"")
        intake.feed(body)
        if complete:
            intake.close()

    async def _read_part(self, message: Message, stream: Stream) -> Message | None:
        """Read a message of a stream; return what goes out in its place, if anything does."""
        call = self._call
        self._alike = None
        out: Message | None = message
        alike, more = stream.intake.alike, message.get("more_body", False)
        if alike is None or not more or not alike.takes_anew(message.get("body", b"")):
            out = stream.read(message)
            if stream.watched is not None:
                stream.note_output(stream.watched)
            if not more:
                self.is_complete = True
        if call.hold is not None and out is not None and await self._is_unpaid(stream):
            return await self._cut(out, stream)
        if stream.has_ended:
            if not self._ended and not await self._end():
                return self._error_event()
        else:
            alike = stream.intake.alike
            self._alike = alike if alike is None or call.hold is None else self._paid(alike)
        return out

    def _paid(self, alike: Alike) -> Alike | None:
        """Return what takes further text, as far as that is paid for."""
        hold = self._call.hold
        if self._settle is None or hold is None:
            return alike
        alike.room, hold.room = min(alike.room, hold.room), 0  # once: it is told when it is asked
        return alike if alike.room > 0 else None

    async def _is_unpaid(self, stream: Stream) -> bool:
        hold, reader = self._call.hold, self._call.reader
        if stream.has_ended or self._settle is None or hold is None:
            return False
        if stream.intake.is_pending or not isinstance(reader, AnswerReader):
            return False  # nothing is cut in the middle of an event
        return not await hold.covers(reader)

    async def _cut(self, message: Message, stream: Stream) -> Message:
        """End a stream that is not paid for any further, with what was made until then."""
        call = self._call
        call.exhausted = self.is_complete = self._is_over = True
        if not await self._end():
            return self._error_event()
        body = message.get("body", b"")
        if stream.is_plain and isinstance(call.reader, AnswerReader) and call.request is not None:
            body += clean_end(
                call.dialect,
                call.request,
                call.reader,
                call_id=call.id,
                created=call.started_ns // 10**9,
                usage=call.usage,
            )
        return {**message, "body": body, "more_body": False}

    def _end(self) -> Awaitable[bool]:
        """Return what settles, where that is done here; it gives False where it could not be."""
        self._ended = True
        if self._settle is None:
            return _settled_elsewhere()
        self._call.ended = True
        return self._settle(self._call)

    async def _send_unrecorded(self) -> None:
        self._is_over = True
        if self._held is None:  # the status is out
            return
        self._held = None
        again = retry_headers(1.0)
        refuse = Refuse(503, "ledger_unavailable", LEDGER_MESSAGE, headers=again)
        await send_refusal(self._call, refuse, self._send)

    def _error_event(self) -> Message:
        self._is_over = True
        event = self._call.dialect.error_event(
            LEDGER_MESSAGE, type="server_error", code="ledger_unavailable"
        )
        return {"type": "http.response.body", "body": event, "more_body": False}


def _tells_by_raising(scope: Scope) -> bool:
    """Tell whether the server says by an OSError of `send` that the client has left.

    Source: ASGI, HTTP & WebSocket protocol, "Disconnected Client", since spec version 2.4.
    """
    version: str = scope.get("asgi", {}).get("spec_version", "2.0")
    return version not in ("2.0", "2.1", "2.2", "2.3")


async def _settled_elsewhere() -> bool:
    return True
