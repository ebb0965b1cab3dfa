"""Server-sent events: from a stream of bytes in any cut to events.

Goes in: the body's bytes, cut anywhere, inside a line end or a character included. Comes out: one
frame per event, with the exact bytes it came in. Bounded: an event over `event_bytes_max` ends the
reading, and the rest is passed through in frames without data. No byte is looked at twice for an
event's end.

Source: WHATWG HTML, section 9.2.6 "Interpreting an event stream" (2026-10).
"""

import re
from typing import NamedTuple

# One event: a whole answer in a `response.completed` event, with room to spare.
EVENT_BYTES_MAX = 16 * 1024 * 1024

# Two line ends in a row; atomic, so that CR LF is never taken for two.
_BLANK_LINE = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_LINE_END = re.compile(rb"\r\n|\n|\r")

# As numbers: to look for bytes in bytes takes eight times as long.
_LF, _CR = b"\n\r"

_BOM = b"\xef\xbb\xbf"

# A blank line may begin this many bytes before the end of what was searched (CR LF CR | LF).
_OVERLAP = 3


class Frame(NamedTuple):
    """One event: its exact bytes, its data (None where it has none) and its `event` field."""

    raw: bytes
    data: bytes | None
    event: bytes | None


class SSEReader:
    """Cuts a stream of bytes into events; `feed` takes the next bytes, `close` the unfinished one.

    The raws of all frames and `pending()` joined are always what was fed.
    """

    __slots__ = ("_after_cr", "_max", "_pieces", "_size", "_started", "overflowed")

    def __init__(self, event_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._max = event_bytes_max
        self._pieces: list[bytes] = []  # of the unfinished event
        self._size = 0
        self._started = False
        self._after_cr = False  # the last frame ended with a CR: a LF that follows belongs to it
        self.overflowed = False

    @property
    def is_pending(self) -> bool:
        """Whether an event is unfinished."""
        return bool(self._pieces)

    def pending(self) -> bytes:
        """Return the bytes of the unfinished event."""
        return b"".join(self._pieces)

    def data_of(self, chunk: bytes) -> bytes | None:
        """Return the data of a chunk that is just one event, the common case; else None.

        Such a chunk need not be fed: it would change nothing.
        """
        if (
            chunk[:6] == b"data: "
            and chunk.find(b"\n") == len(chunk) - 2
            and chunk[-1] == _LF
            and not (self._pieces or self._after_cr or self.overflowed)
            and _CR not in chunk
        ):
            self._started = True
            return chunk[6:-2]
        return None

    def named_of(self, chunk: bytes) -> tuple[bytes, bytes] | None:
        """Return `event` and data of a chunk that is just one event with both; else None."""
        if chunk[:7] != b"event: " or self._pieces:
            return None
        end = chunk.find(_LF)
        if (
            chunk[end + 1 : end + 7] == b"data: "
            and chunk.find(_LF, end + 1) == len(chunk) - 2
            and chunk[-1] == _LF
            and not (self._after_cr or self.overflowed)
            and _CR not in chunk
        ):
            self._started = True
            return chunk[7:end], chunk[end + 7 : -2]
        return None

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take the next bytes; return the events that are whole now."""
        if self.overflowed or not chunk:
            return [Frame(chunk, None, None)] if chunk else []
        data = self.data_of(chunk)
        if data is not None:
            return [Frame(chunk, data, None)]
        if not self._pieces:
            frames, rest = self._split(chunk, 0)
        else:
            tail = self._tail()
            # Most pieces of a long event have no line end, which is seen much faster.
            has_ends = _LF in chunk or _CR in chunk
            if not has_ends or _BLANK_LINE.search(tail + chunk) is None:
                frames, rest = [], None
            else:
                whole = b"".join([*self._pieces, chunk])
                frames, rest = self._split(whole, self._size - len(tail))
        if rest is None:
            self._keep(chunk)
        else:
            self._pieces = [rest] if rest else []
            self._size = len(rest)
        if self._size > self._max:
            self.overflowed = True
            frames.append(Frame(self.pending(), None, None))
            self._pieces = []
        return frames

    def close(self) -> Frame | None:
        """Return the unfinished last event, read as if it were whole."""
        raw = self.pending()
        self._pieces = []
        return self._frame(raw) if raw else None

    def _split(self, data: bytes, search_from: int) -> tuple[list[Frame], bytes]:
        frames: list[Frame] = []
        start = 0
        if self._after_cr and data.startswith(b"\n"):
            search_from = max(search_from, 1)  # the rest of a line end, not a blank line
        while (match := _BLANK_LINE.search(data, search_from)) is not None:
            end = match.end()
            frames.append(self._frame(data[start:end]))
            start = end
            self._after_cr = data[end - 1 : end] == b"\r"
            # A LF right here is the other half of that CR.
            search_from = end + (self._after_cr and data[end : end + 1] == b"\n")
        return frames, data[start:]

    def _tail(self) -> bytes:
        tail = self._pieces[-1]
        if len(tail) >= _OVERLAP or len(self._pieces) == 1:
            return tail[-_OVERLAP:]
        return b"".join(self._pieces[-_OVERLAP:])[-_OVERLAP:]

    def _keep(self, chunk: bytes) -> None:
        self._pieces.append(chunk)
        self._size += len(chunk)

    def _frame(self, raw: bytes) -> Frame:
        text = raw
        if not self._started:
            self._started = True
            text = text.removeprefix(_BOM)
        data: list[bytes] = []
        event: bytes | None = None
        for line in text.split(b"\n") if _CR not in text else _LINE_END.split(text):
            name, colon, value = line.partition(b":")
            if name == b"data":
                data.append(value.removeprefix(b" ") if colon else b"")
            elif name == b"event":
                event = value.removeprefix(b" ")
        return Frame(raw, b"\n".join(data) if data else None, event)
