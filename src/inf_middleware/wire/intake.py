"""From the bytes of one answer, as its headers describe them, to the facts that its reader tells.

Sans-IO and bounded: `feed` takes bytes in any cut, `read` the frames that are forwarded.
"""

from functools import lru_cache
from typing import Literal, TypeAlias

from inf_middleware.wire.alike import Alike
from inf_middleware.wire.encodings import Decoder, decoder_of
from inf_middleware.wire.ndjson import NDJSONReader
from inf_middleware.wire.reader import AnswerReader
from inf_middleware.wire.seen import Seen
from inf_middleware.wire.sse import Frame, SSEReader

# A JSON answer beyond this is passed on unread, and its usage estimated; the embeddings of a full
# batch stay below.
JSON_BYTES_MAX = 64 * 1024 * 1024

# How many pieces of a stream in a row may be learned from in vain. Some servers make each one
# different, and learning from it costs as much as half of reading it.
ALIKE_MAX = 16

# Content codings that change no byte.
PLAIN = (b"", b"identity")

_LINES = (
    b"application/x-ndjson",
    b"application/ndjson",
    b"application/jsonl",
    b"application/x-jsonl",
)

# What cuts a stream; False where an answer is one whole.
Cutter: TypeAlias = type[SSEReader | NDJSONReader] | Literal[False]


class Intake:
    """Takes the bytes of one answer for its reader.

    `is_stream`: it comes in frames, else it is read whole at its end. `is_decoded`: frames are not
    the bytes that came, which were compressed. `alike` takes a piece that is like those before it;
    what it does not take is to be read.
    """

    alike: Alike | None = None
    is_stream = False
    is_decoded = False
    _size = 0
    _learns = ALIKE_MAX

    def __init__(
        self,
        reader: AnswerReader,
        cutter: SSEReader | NDJSONReader | None,
        decoder: Decoder | None,
        *,
        is_readable: bool,
    ) -> None:
        self._reader = reader
        self._cutter = cutter
        self._decoder = decoder
        self._readable = is_readable
        self._pieces: list[bytes] = []
        if cutter is not None:
            self.is_stream = True
        if decoder is not None:
            self.is_decoded = True

    @property
    def is_pending(self) -> bool:
        """Whether an event is unfinished."""
        return self._cutter is not None and self._cutter.is_pending

    def read_one(self, piece: bytes) -> int | None:
        """Read a piece that is just one event, the common case; None where it must be fed."""
        if self._cutter is None or self._decoder is not None or not self._readable:
            return None
        data, event = self._cutter.data_of(piece), None
        if data is None:
            named = self._cutter.named_of(piece) if type(self._cutter) is SSEReader else None
            if named is None:
                return None
            event, data = named
        seen = self._reader.event(data, event)
        alike = self.alike
        if alike is not None and alike.pays():
            self._learns = ALIKE_MAX
        if seen or not self._learns:  # what a report tells holds only until there is more text
            self.alike = None
        else:
            self._learns -= 1
            self.alike = self._reader.alike(piece, data, event) or alike
        return seen

    def feed(self, piece: bytes) -> list[Frame]:
        """Take the next bytes; return the frames of a stream that are whole now."""
        if self._cutter is not None:
            self.alike = None
        if self._decoder is not None and self._readable:
            try:
                piece = self._decoder(piece)
            except ValueError:
                self._give_up()
        if self._cutter is not None:
            if self._readable:
                return self._cutter.feed(piece)
            self._reader.unread(len(piece))
            return [Frame(piece, None, None)] if piece else []
        if self._readable:
            self._size += len(piece)
            self._pieces.append(piece)
            if self._size > JSON_BYTES_MAX:
                self._give_up()
        else:
            self._reader.unread(len(piece))
        return []

    def close(self) -> list[Frame]:
        """Take the end: return the unfinished frame of a stream, or read the whole."""
        if self._cutter is not None:
            last = self._cutter.close()
            return [last] if last is not None else []
        if self._readable:
            self._reader.whole(b"".join(self._pieces))
            self._pieces = []
            self._readable = False
        return []

    def read(self, frame: Frame) -> int:
        """Read one frame."""
        if frame.data is not None:
            return self._reader.event(frame.data, frame.event)
        if self._cutter is not None and self._cutter.overflowed:
            self._reader.unread(len(frame.raw))
        return Seen.NOTHING

    def _give_up(self) -> None:
        self._readable = False
        self._reader.unread(self._size)
        self._pieces = []


def intake_of(reader: AnswerReader, content_type: bytes, coding: bytes) -> Intake | None:
    """Return what takes an answer by its headers; None where it holds no facts."""
    cutter = cutter_of(content_type)
    return None if cutter is None else intake_by(reader, cutter, coding)


def intake_by(reader: AnswerReader, cutter: Cutter, coding: bytes) -> Intake:
    """Return what takes an answer of a coding that is cut so."""
    decoder, readable = None, True
    if coding not in PLAIN:
        decoder = decoder_of(coding)
        readable = decoder is not None
    return Intake(reader, cutter() if cutter else None, decoder, is_readable=readable)


@lru_cache(maxsize=256)  # an app's types are few
def cutter_of(content_type: bytes) -> Cutter | None:
    """Return what cuts an answer of a type; None where it holds no facts."""
    content_type = content_type.lower()
    if content_type.startswith(b"text/event-stream"):
        return SSEReader
    if content_type.startswith(_LINES):
        return NDJSONReader
    return False if b"json" in content_type or not content_type else None
