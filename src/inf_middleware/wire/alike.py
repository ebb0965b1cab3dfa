"""Pieces that differ from one before in nothing but their text, which nearly all of a stream do.

Of a piece that was decoded, what stands around its text is kept. Another that begins and ends with
the very same bytes, and has no sign in between that means anything in JSON, says the very same but
for the text: it need not be decoded. That costs a quarter of decoding it.
"""


class Alike:
    """What stands around the text of a piece of a stream, and the choice that the text is of."""

    __slots__ = ("_after", "_before", "_start", "group")

    def __init__(self, before: bytes, after: bytes, index: int) -> None:
        self._before = before
        self._after = after
        self._start = len(before)
        self.group = (index,)

    def text_of(self, piece: bytes) -> str | None:
        """Return the text of a piece that is alike; None where it is another, or has none."""
        if not (piece.startswith(self._before) and piece.endswith(self._after)):
            return None
        raw = piece[self._start : len(piece) - len(self._after)]
        if b'"' in raw or b"\\" in raw:
            return None
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return None
        # Control characters are no part of a JSON string; the few others that are not printed are
        # decoded, too.
        return text if text.isprintable() and text else None


def alike_of(piece: bytes, text: str, index: int) -> Alike | None:
    """Return what is alike, of a piece whose only text was decoded; None where it is not sure.

    Without an escape in the piece, a quoted text that stands in it once is that text.
    """
    quoted = b'"%s"' % text.encode()
    before, found, after = piece.partition(quoted)
    if b"\\" in piece or not found or quoted in after:
        return None
    return Alike(before + b'"', b'"' + after, index)
