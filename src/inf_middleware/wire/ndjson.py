"""Lines of JSON: from a stream of bytes in any cut to events, one a line.

Goes in: the body's bytes, cut anywhere. Comes out: one frame per line, with the exact bytes it came
in. Bounded: a line over `line_bytes_max` ends the reading, and the rest is passed through in frames
without data. No byte is looked at twice for a line's end.

Source: github.com/ndjson/ndjson-spec 1.0.0.
"""

from inf_middleware.wire.sse import EVENT_BYTES_MAX, Frame


class NDJSONReader:
    """Cuts a stream of bytes into lines; `feed` takes the next bytes, `close` the unfinished one.

    The raws of all frames and `pending()` joined are always what was fed.
    """

    __slots__ = ("_max", "_pieces", "_size", "overflowed")

    def __init__(self, line_bytes_max: int = EVENT_BYTES_MAX) -> None:
        self._max = line_bytes_max
        self._pieces: list[bytes] = []  # of the unfinished line
        self._size = 0
        self.overflowed = False

    @property
    def is_pending(self) -> bool:
        """Whether a line is unfinished."""
        return bool(self._pieces)

    def pending(self) -> bytes:
        """Return the bytes of the unfinished line."""
        return b"".join(self._pieces)

    def data_of(self, chunk: bytes) -> bytes | None:
        """Return the data of a chunk that is just one line, the common case; else None.

        Such a chunk need not be fed: it would change nothing.
        """
        if self._pieces or self.overflowed or chunk.find(b"\n") != len(chunk) - 1:
            return None
        return chunk.strip() or None

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take the next bytes; return the lines that are whole now."""
        if self.overflowed or not chunk:
            return [Frame(chunk, None, None)] if chunk else []
        frames: list[Frame] = []
        start = 0
        while end := chunk.find(b"\n", start) + 1:
            line = chunk[start:end]
            if self._pieces:
                line = b"".join([*self._pieces, line])
                self._pieces, self._size = [], 0
            frames.append(_frame(line))
            start = end
        if start < len(chunk):
            self._pieces.append(chunk[start:] if start else chunk)
            self._size += len(chunk) - start
        if self._size > self._max:
            self.overflowed = True
            frames.append(Frame(self.pending(), None, None))
            self._pieces = []
        return frames

    def close(self) -> Frame | None:
        """Return the unfinished last line, read as if it were whole."""
        raw = self.pending()
        self._pieces = []
        return _frame(raw) if raw else None


def _frame(raw: bytes) -> Frame:
    return Frame(raw, raw.strip() or None, None)
