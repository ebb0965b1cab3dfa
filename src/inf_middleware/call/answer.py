"""The answer on its way out: each message is read, then forwarded, in the same await.

What goes out are the very bytes that came in, less only the usage that we asked for. The call is
settled before the message that ends the answer leaves. That message is the one that completes
`content-length`; else the one with the dialect's terminal event or its final usage; else the
closing one (a `BaseHTTPMiddleware` in the app sends whole JSON with `more_body=True` and an empty
message after it). The start of an answer that is no stream waits for its first body message, so
that a settlement that fails can still become a 503.
"""

from collections.abc import Awaitable, Callable, Sequence

from starlette.types import Message, Send

from inf_middleware.call.drain import drains
from inf_middleware.call.observing import FirstOutput
from inf_middleware.call.record import Asked, Call
from inf_middleware.call.refuse import Refuse, send_refusal
from inf_middleware.call.start import NAME, read_headers
from inf_middleware.wire.alike import Alike
from inf_middleware.wire.body import without_usage
from inf_middleware.wire.ending import clean_end
from inf_middleware.wire.intake import JSON_BYTES_MAX, PLAIN, Intake, cutter_of, intake_of
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.seen import Seen
from inf_middleware.wire.sse import Frame, SSEReader

Header = tuple[bytes, bytes]

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
        "_ended",
        "_ending",
        "_headers",
        "_held",
        "_intake",
        "_is_over",
        "_is_stream",
        "_length",
        "_passed",
        "_reader",
        "_server_send",
        "_settle",
        "_strip",
        "is_complete",
    )

    def __init__(
        self,
        call: Call,
        send: Send,
        strip: Asked,
        settle: Callable[[Call], Awaitable[bool]] | None,
        headers: Sequence[Header],
    ) -> None:
        self._call = call
        self._server_send = send
        self._strip = strip
        self._settle = settle
        self._headers = headers
        self._held: Message | None = None  # the start of an answer that is no stream
        self._length: int | None = None
        self._passed = 0  # body bytes seen
        self._reader: AnswerReader | None = None  # of an answer that holds facts
        self._intake: Intake | None = None  # where it does not come whole at once
        self._alike: Alike | None = None  # what takes more text of a stream, and nothing else
        self._is_stream = False
        self.is_complete = False  # the end of its body was seen
        self._ending = False  # the end of the stream was read
        self._ended = False
        self._is_over = False  # nothing more of the app's answer goes out

    async def send(self, message: Message) -> None:
        """Take one message from the app."""
        alike = self._alike
        if alike is not None:  # first and in place: so are nearly all chunks of a stream
            try:
                is_taken = message["more_body"] and alike.takes(message["body"])
            except KeyError:  # both may be left out
                is_taken = False
            if is_taken:
                if not self._call.draining:
                    try:
                        await self._server_send(message)
                    except OSError:
                        if not self._drains():
                            raise
                return
        if self._is_over:
            if self._call.exhausted:
                raise OSError("the stream was ended: the balance is used up")  # as of a client gone
            return
        kind = message["type"]
        if kind == "http.response.body":
            if self._is_stream and self._intake is not None:
                await self._stream_body(message, self._intake)
            else:
                await self._whole_body(message)
        elif kind == "http.response.start":
            start = self._start(message)
            if start is not None:
                await self._send(start)
        else:
            await self._send_held()
            await self._send(message)

    async def finish(self) -> None:
        """Send what is still held back of an answer that is not complete, after its app."""
        if self._held is not None:
            await self._send_held()
        self.read_what_came()
        if self._intake is not None and self._is_stream and not self.is_complete:
            out, _ = self._read_frames(self._intake.close(), self._intake)
            if self._strip and out:
                body = b"".join(out)
                await self._send({"type": "http.response.body", "body": body, "more_body": True})

    def read_what_came(self) -> None:
        """Read what there is of an answer that is no stream and did not come to its end."""
        if self._passed:
            self._call.begun = True
        if self._intake is not None and self._passed and not (self._is_stream or self._ended):
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
        content_type, coding, self._length, is_named = read_headers(headers)
        cutter = cutter_of(content_type)
        if status < 400 and cutter is not None:
            self._read_as(content_type, coding, is_stream=bool(cutter))
        if self._strip and self._intake is not None and self._is_stream:
            changed = [b"content-length"]
            if self._intake.is_decoded:  # an event can be taken out of plain bytes only
                changed.append(b"content-encoding")
            headers = [header for header in headers if header[0].lower() not in changed]
            self._length = None
        ours = self._headers
        if is_named:  # the app's own name for the request stays; `request-id` is ours
            ours = [header for header in ours if header[0] != NAME]
        start = dict(message)
        start["headers"] = [*headers, *ours]
        if self._is_stream or cutter is SSEReader:
            return start
        self._held = start
        return None

    def _read_as(self, content_type: bytes, coding: bytes, *, is_stream: bool) -> None:
        call = self._call
        assert call.request is not None
        reader = self._reader = call.dialect.answer(call.request)
        if call.reader is None:
            call.reader = reader
        if is_stream or coding not in PLAIN:
            self._intake = intake_of(reader, content_type, coding)
        if is_stream:
            self._is_stream = True
            if call.reader is reader:
                call.is_stream = True
            if call.observer is not None and self._intake is not None:
                self._intake = FirstOutput(self._intake, reader, self._note_first_output)

    def _note_first_output(self, intake: Intake) -> None:
        self._intake = intake  # the rest of the stream costs nothing more
        if self._call.first_output_ns is None:
            self._call.first_output_ns = self._call.parts.now_ns()

    async def _whole_body(self, message: Message) -> None:
        call = self._call
        body = message.get("body", b"")
        self._passed += len(body)
        if not self._ended:
            complete = not message.get("more_body", False) or (
                self._length is not None and self._passed >= self._length
            )
            if self._reader is not None:
                self._read_whole(self._reader, bytes(body), complete)
            if complete:
                self.is_complete = self._ended = True
                if self._settle is not None:
                    call.ended = True
                    if not await self._settle(call):
                        self._is_over = True
                        if self._held is not None:
                            await self._send_unrecorded()
                        return
        held, self._held = self._held, None
        if call.draining:
            return
        try:
            if held is not None:
                await self._server_send(held)
            await self._server_send(message)
        except OSError:
            if not self._drains():
                raise

    def _read_whole(self, reader: AnswerReader, body: bytes, complete: bool) -> None:
        """Read a body that is no stream, or a piece of it; nearly all come in one."""
        intake = self._intake
        if intake is None:
            if complete and len(body) <= JSON_BYTES_MAX:
                reader.whole(body)
                return
            intake = self._intake = Intake(reader, None, None, is_readable=True)
        intake.feed(body)
        if complete:
            intake.close()

    async def _stream_body(self, message: Message, intake: Intake) -> None:
        call = self._call
        self._alike = None
        out: Message | None = message
        alike, more = intake.alike, message.get("more_body", False)
        if alike is None or not more or not alike.takes_anew(message.get("body", b"")):
            out = self._read_stream(message, intake)
        if call.hold is not None and out is not None and await self._is_unpaid():
            await self._cut(out, intake)
            return
        if self._ending:
            if not self._ended and not await self._end():
                await self._send_error_event()
                return
        else:
            self._alike = self._alike_paid()
        if out is not None:
            await self._send(out)

    def _alike_paid(self) -> Alike | None:
        """Return what takes further text, as far as that is paid for."""
        alike, hold = None if self._intake is None else self._intake.alike, self._call.hold
        if alike is None or self._settle is None or hold is None:
            return alike
        alike.room, hold.room = min(alike.room, hold.room), 0  # once: it is told when it is asked
        return alike if alike.room > 0 else None

    def _read_stream(self, message: Message, intake: Intake) -> Message | None:
        """Read a message of a stream; return what of it goes out, None where nothing does."""
        more = message.get("more_body", False)
        body = message.get("body", b"")
        if type(body) is not bytes:
            body = bytes(body)
        strip = self._strip
        if more and strip != "continuous":
            seen = intake.read_one(body)
            if not seen:
                if seen is not None:
                    return message
            else:
                if seen & Seen.END:
                    self._ending = True
                return None if strip and seen & Seen.USAGE_ONLY else message
        changed = bool(strip) and (intake.is_pending or intake.is_decoded)
        frames = intake.feed(body)
        if not more:
            self.is_complete = self._ending = True
            frames += intake.close()
        if not strip:
            for frame in frames:
                if intake.read(frame) & Seen.END:
                    self._ending = True
            return message
        out, dropped = self._read_frames(frames, intake)
        if changed or dropped or (more and intake.is_pending):
            if not out and more:
                return None
            return {**message, "body": b"".join(out)}
        return message

    async def _is_unpaid(self) -> bool:
        call, intake = self._call, self._intake
        if self._ending or self._settle is None or call.hold is None or call.reader is None:
            return False
        if intake is not None and intake.is_pending:  # nothing is cut in the middle of an event
            return False
        return not await call.hold.covers(call.reader)

    async def _cut(self, message: Message, intake: Intake) -> None:
        """End a stream that is not paid for any further, with what was made until then."""
        call = self._call
        plain = bool(self._strip) or not intake.is_decoded
        call.exhausted = self.is_complete = True
        if not await self._end():
            await self._send_error_event()
            return
        body = message.get("body", b"")
        if plain and call.reader is not None and call.request is not None:
            body += clean_end(
                call.dialect,
                call.request,
                call.reader,
                call_id=call.id,
                created=call.started_ns // 10**9,
                usage=call.usage,
            )
        await self._send({**message, "body": body, "more_body": False})

    def _read_frames(self, frames: list[Frame], intake: Intake) -> tuple[list[bytes], bool]:
        """Read frames; return what is left of them, and whether that is less than there was."""
        out: list[bytes] = []
        dropped = False
        for frame in frames:
            raw = frame.raw
            seen = intake.read(frame)
            if not seen:
                out.append(raw)
                continue
            if seen & Seen.END:
                self._ending = True
            if seen & Seen.USAGE_ONLY:
                dropped = True
                continue
            if self._strip == "continuous" and seen & Seen.RUNNING_USAGE and frame.data:
                raw = raw.replace(frame.data, without_usage(frame.data), 1)
                dropped = True
            out.append(raw)
        return out, dropped

    async def _end(self) -> bool:
        self._ended = True
        if self._settle is None:
            return True
        self._call.ended = True
        recorded = await self._settle(self._call)
        self._is_over = self._call.exhausted or not recorded
        return recorded

    async def _send_held(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            await self._send(held)

    async def _send_unrecorded(self) -> None:
        self._held = None
        refuse = Refuse(503, "ledger_unavailable", LEDGER_MESSAGE, headers=[(b"retry-after", b"1")])
        await send_refusal(self._call, refuse, self._send)

    async def _send_error_event(self) -> None:
        event = self._call.dialect.error_event(
            LEDGER_MESSAGE, type="server_error", code="ledger_unavailable"
        )
        await self._send({"type": "http.response.body", "body": event, "more_body": False})
