"""A streamed answer, message by message: what is read of it, and what of it goes out."""

from collections.abc import Sequence
from typing import TypeAlias

from starlette.types import Message

from inf_middleware.call.record import Asked, Call
from inf_middleware.wire.body import without_usage
from inf_middleware.wire.intake import Cutter, Intake, intake_by
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.seen import Seen
from inf_middleware.wire.sse import Frame

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]


def reader_for(call: Call) -> AnswerReader:
    """Return a reader of the call's answer; the call goes by the one that is nearest to the app."""
    assert call.request is not None
    reader = call.dialect.answer(call.request)
    if reader.outline is not None:
        reader.outline.known_to = call.billed_to
    if call.reader is None:
        call.reader = reader
    return reader


def stream_of(call: Call, strip: Asked, cutter: Cutter, coding: bytes) -> "Stream":
    """Return what reads the call's answer, which is a stream that is cut so."""
    reader = reader_for(call)
    if call.asked:
        reader.awaits_report = True
    if call.reader is reader:
        call.is_stream = True
    watched = None if call.observer is None else call
    return Stream(intake_by(reader, cutter, coding), reader, strip, watched)


class Stream:
    """Reads the messages of one streamed answer.

    `strip` takes out the usage that we asked for. `has_ended`: its end was read. `watched` is the
    call on which the first output is noted (None: nobody wants to know, or it is).
    """

    __slots__ = ("_reader", "_strip", "has_ended", "intake", "watched")

    def __init__(
        self,
        intake: Intake,
        reader: AnswerReader,
        strip: Asked,
        watched: Call | None,
    ) -> None:
        self.intake = intake
        self._reader = reader
        self._strip = strip
        self.watched = watched
        self.has_ended = False

    @property
    def is_plain(self) -> bool:
        """Whether what goes out is in no coding, so that events can be taken out and added."""
        return bool(self._strip) or not self.intake.is_decoded

    def headers(self, headers: Headers) -> Headers:
        """Return those of the headers that hold for what goes out."""
        if not self._strip:
            return headers
        changed = [b"content-length"]
        if self.intake.is_decoded:  # an event can be taken out of plain bytes only
            changed.append(b"content-encoding")
        return [header for header in headers if header[0].lower() not in changed]

    def note_output(self, call: Call) -> None:
        """Note on the call when there was output first."""
        if self._reader.has_output:
            self.watched = None  # the rest of the stream costs nothing more
            if call.first_output_ns is None:
                call.first_output_ns = call.parts.now_ns()

    def rest(self) -> bytes:
        """Read the end, which the app did not send; return what was held back of it."""
        out, _ = self._read_frames(self.intake.close())
        return b"".join(out) if self._strip else b""

    def read(self, message: Message) -> Message | None:
        """Read a message; return what of it goes out, None where nothing does."""
        intake, strip = self.intake, self._strip
        more = message.get("more_body", False)
        body = message.get("body", b"")
        if type(body) is not bytes:
            body = bytes(body)
        if more and strip != "continuous":
            seen = intake.read_one(body)
            if not seen:
                if seen is not None:
                    return message
            else:
                if seen & Seen.END:
                    self.has_ended = True
                return None if strip and seen & Seen.USAGE_ONLY else message
        changed = bool(strip) and (intake.is_pending or intake.is_decoded)
        frames = intake.feed(body)
        if not more:
            self.has_ended = True
            frames += intake.close()
        if not strip:
            for frame in frames:
                if intake.read(frame) & Seen.END:
                    self.has_ended = True
            return message
        out, dropped = self._read_frames(frames)
        if changed or dropped or (more and intake.is_pending):
            if not out and more:
                return None
            return {**message, "body": b"".join(out)}
        return message

    def _read_frames(self, frames: list[Frame]) -> tuple[list[bytes], bool]:
        """Read frames; return what is left of them, and whether that is less than there was."""
        out: list[bytes] = []
        dropped = False
        for frame in frames:
            raw = frame.raw
            seen = self.intake.read(frame)
            if not seen:
                out.append(raw)
                continue
            if seen & Seen.END:
                self.has_ended = True
            if seen & Seen.USAGE_ONLY:
                dropped = True
                continue
            if self._strip == "continuous" and seen & Seen.RUNNING_USAGE and frame.data:
                raw = raw.replace(frame.data, without_usage(frame.data), 1)
                dropped = True
            out.append(raw)
        return out, dropped
