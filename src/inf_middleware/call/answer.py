"""The answer on its way out: each message is read, then forwarded, in the same await.

What goes out are the very bytes that came in, less only the usage event that we asked for. The
call is settled before the message that ends the answer leaves. That message is the one that
completes `content-length`; else the one with the dialect's terminal event or its final usage; else
the closing one (a `BaseHTTPMiddleware` in the app sends whole JSON with `more_body=True` and an
empty message after it). The start of an answer that is no stream waits for its first body message,
so that a settlement that fails can still become a 503.
"""

import zlib
from collections.abc import Awaitable, Callable, Sequence

from starlette.types import Message, Send

from inf_middleware.call.record import Call
from inf_middleware.call.refuse import Refuse, send_refusal
from inf_middleware.wire.reader import AnswerReader, Seen
from inf_middleware.wire.sse import Frame, SSEReader

# A JSON answer beyond this is passed on unread, and its usage estimated; the embeddings of a full
# batch stay below.
JSON_BYTES_MAX = 64 * 1024 * 1024

Header = tuple[bytes, bytes]

LEDGER_MESSAGE = "The call could not be recorded and is not billed; try again shortly."


class Answer:
    """Reads one answer for a call and forwards it.

    `strip` takes out the usage event that we asked for; `settle` is awaited once before the end
    leaves (None: somebody further out settles); `headers` are added to the start.
    """

    def __init__(
        self,
        call: Call,
        send: Send,
        *,
        strip: bool,
        settle: Callable[[Call], Awaitable[bool]] | None,
        headers: Sequence[Header],
    ) -> None:
        self._call = call
        self._send = send
        self._strip = strip
        self._settle = settle
        self._headers = headers
        self._held: Message | None = None  # the start of an answer that is no stream
        self._length: int | None = None
        self._passed = 0  # body bytes seen
        self._reader: AnswerReader | None = None
        self._sse: SSEReader | None = None
        self._inflate: zlib._Decompress | None = None
        self._json: list[bytes] | None = None
        self._json_bytes = 0
        self._ended = False
        self._broken = False  # the settlement failed: nothing more of the app's answer goes out

    async def send(self, message: Message) -> None:
        """Take one message from the app."""
        if self._broken:
            return
        kind = message["type"]
        try:
            if kind == "http.response.body":
                if self._sse is not None:
                    await self._stream_body(message, self._sse)
                else:
                    await self._whole_body(message)
            elif kind == "http.response.start":
                await self._start(message)
            else:
                await self._send_held()
                await self._send(message)
        except OSError:  # how servers of ASGI spec 2.4 and later tell that the client has left
            if not self._call.ended:
                self._call.disconnected = True
            raise

    async def finish(self) -> None:
        """Send what is still held back, after an app that returned without a body."""
        await self._send_held()

    async def _start(self, message: Message) -> None:
        call = self._call
        status = message["status"]
        if call.status is None:  # what is further in sees what the app itself sent
            call.status = status
        content_type = encoding = b""
        named = False
        for name, value in message.get("headers", ()):
            lower = name.lower()
            if lower == b"content-type":
                content_type = value.lower()
            elif lower == b"content-encoding":
                encoding = value.strip().lower()
            elif lower == b"content-length" and value.isdigit():
                self._length = int(value)
            elif lower == b"x-request-id":
                named = True  # the app's own name for the request stays; `request-id` is ours
        is_stream = content_type.startswith(b"text/event-stream")
        if status < 400:
            self._read_as(is_stream, content_type, encoding)
        kept = message.get("headers", ())
        if self._sse is not None and self._strip and self._length is not None:
            kept = [header for header in kept if header[0].lower() != b"content-length"]
            self._length = None
        ours = self._headers
        if named:
            ours = [header for header in ours if header[0] != b"x-request-id"]
        start = {**message, "headers": [*kept, *ours]}
        if is_stream:
            await self._send(start)
        else:
            self._held = start

    def _read_as(self, is_stream: bool, content_type: bytes, encoding: bytes) -> None:
        call = self._call
        if encoding in (b"gzip", b"deflate"):
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, told apart
        elif encoding not in (b"", b"identity"):
            return
        if is_stream and self._inflate is None:
            self._sse = SSEReader()
        elif b"json" in content_type or not content_type:
            self._json = []
        else:
            return
        assert call.request is not None
        self._reader = call.dialect.answer(call.request)
        if call.reader is None:
            call.reader = self._reader
            call.is_stream = is_stream

    async def _whole_body(self, message: Message) -> None:
        body = message.get("body", b"")
        self._passed += len(body)
        if self._json is not None:
            self._keep(body)
        more = message.get("more_body", False)
        complete = self._length is not None and self._passed >= self._length
        if (complete or not more) and not self._ended:
            if self._json is not None and self._reader is not None:
                self._reader.whole(b"".join(self._json))
                self._json = None
            if not await self._end():
                if self._held is not None:
                    await self._send_unrecorded()
                return
        await self._send_held()
        await self._send(message)

    def _keep(self, body: bytes) -> None:
        assert self._json is not None
        if self._inflate is not None:
            try:
                body = self._inflate.decompress(body, JSON_BYTES_MAX)
            except zlib.error:
                body = b""
        self._json_bytes += len(body)
        if self._json_bytes > JSON_BYTES_MAX:
            self._json = None
        else:
            self._json.append(bytes(body))

    async def _stream_body(self, message: Message, sse: SSEReader) -> None:
        body = message.get("body", b"")
        more = message.get("more_body", False)
        waiting = sse.is_pending
        frames = sse.feed(bytes(body))
        if not more:
            last = sse.close()
            if last is not None:
                frames.append(last)
        out, dropped, end = self._read_frames(frames)
        if (end or not more) and not self._ended and not await self._end():
            await self._send(
                {"type": "http.response.body", "body": self._error_event(), "more_body": False}
            )
            return
        if self._strip and (dropped or waiting or (more and sse.is_pending)):
            if not out and more:
                return
            message = {**message, "body": b"".join(out)}
        await self._send(message)

    def _read_frames(self, frames: list[Frame]) -> tuple[list[bytes], bool, bool]:
        reader = self._reader
        assert reader is not None
        out: list[bytes] = []
        dropped = end = False
        for frame in frames:
            if frame.data is not None:
                seen = reader.event(frame.data, frame.event)
                if seen & Seen.END:
                    end = True
                if self._strip and seen & Seen.USAGE_ONLY:
                    dropped = True
                    continue
            elif self._sse is not None and self._sse.overflowed:
                reader.text_overflow_bytes += len(frame.raw)
            out.append(frame.raw)
        return out, dropped, end

    async def _end(self) -> bool:
        self._ended = True
        if self._settle is None:
            return True
        self._call.ended = True
        self._broken = not await self._settle(self._call)
        return not self._broken

    async def _send_held(self) -> None:
        if self._held is not None:
            held, self._held = self._held, None
            await self._send(held)

    async def _send_unrecorded(self) -> None:
        self._held = None
        refuse = Refuse(503, "ledger_unavailable", LEDGER_MESSAGE, headers=[(b"retry-after", b"1")])
        await send_refusal(self._call, refuse, self._send)

    def _error_event(self) -> bytes:
        return self._call.dialect.error_event(
            LEDGER_MESSAGE, type="server_error", code="ledger_unavailable"
        )
