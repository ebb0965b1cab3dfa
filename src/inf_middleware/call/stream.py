"""A streamed answer, message by message: what is read of it, and what of it goes out."""

from collections.abc import Callable

from starlette.types import Message

from inf_middleware.call.record import Asked
from inf_middleware.wire.alike import Alike
from inf_middleware.wire.body import without_usage
from inf_middleware.wire.intake import Intake
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.seen import Seen
from inf_middleware.wire.sse import Frame


class Stream:
    """Reads the messages of one streamed answer.

    `strip` takes out the usage that we asked for. `has_ended`: its end was read. `first_output` is
    called once there is output (None: nobody wants to know).
    """

    __slots__ = ("_first_output", "_intake", "_reader", "_strip", "has_ended")

    def __init__(
        self,
        intake: Intake,
        reader: AnswerReader,
        strip: Asked,
        first_output: Callable[[], None] | None,
    ) -> None:
        self._intake = intake
        self._reader = reader
        self._strip = strip
        self._first_output = first_output
        self.has_ended = False

    @property
    def alike(self) -> Alike | None:
        """What takes more text as that which was read last."""
        return self._intake.alike

    @property
    def is_pending(self) -> bool:
        """Whether an event is unfinished."""
        return self._intake.is_pending

    @property
    def is_plain(self) -> bool:
        """Whether what goes out is in no coding, so that events can be taken out and added."""
        return bool(self._strip) or not self._intake.is_decoded

    def without(self) -> list[bytes]:
        """Return the names of the headers that do not hold for what goes out."""
        if not self._strip:
            return []
        # An event can be taken out of plain bytes only.
        coding = [b"content-encoding"] if self._intake.is_decoded else []
        return [b"content-length", *coding]

    def read(self, message: Message) -> Message | None:
        """Read a message; return what of it goes out, None where nothing does."""
        out = self._read(message)
        if self._first_output is not None and self._reader.has_output:
            self._first_output()
            self._first_output = None  # the rest of the stream costs nothing more
        return out

    def rest(self) -> bytes:
        """Read the end, which the app did not send; return what was held back of it."""
        out, _ = self._read_frames(self._intake.close())
        return b"".join(out) if self._strip else b""

    def _read(self, message: Message) -> Message | None:
        intake, strip = self._intake, self._strip
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
            seen = self._intake.read(frame)
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
