"""Pieces that differ from one before in nothing but their text, which nearly all of a stream do.

Of a piece that was decoded, what stands around its text is kept. Another that begins and ends with
the very same bytes, and has no sign in between that means anything in JSON, says the very same but
for the text: it need not be decoded. That costs a quarter of decoding it.
"""

from collections.abc import Callable
from typing import TypeAlias

Take: TypeAlias = Callable[[str, tuple[int, ...]], None]


class Alike:
    """What stands around the text of a piece of a stream, and who takes the text.

    `take` is told of a text and the choice that it is of.
    """

    __slots__ = ("_after", "_before", "_end", "_group", "_start", "_take")

    def __init__(self, before: bytes, after: bytes, index: int, take: Take) -> None:
        self._before = before
        self._after = after
        self._start = len(before)
        self._end = -len(after)
        self._group = (index,)
        self._take = take

    def takes(self, piece: bytes) -> bool:
        """Take the text of a piece that is alike; False where it is another, or has none."""
        if not (piece.startswith(self._before) and piece.endswith(self._after)):
            return False
        raw = piece[self._start : self._end]
        if b'"' in raw or b"\\" in raw:
            return False
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            return False
        # Control characters are no part of a JSON string; the few others that are not printed are
        # decoded, too.
        if not text or not text.isprintable():
            return False
        self._take(text, self._group)
        return True


def alike_of(piece: bytes, text: str, index: int, take: Take) -> Alike | None:
    """Return what is alike, of a piece whose only text was decoded; None where it is not sure.

    Without an escape in the piece, a quoted text that stands in it once is that text.
    """
    quoted = b'"%s"' % text.encode()
    before, found, after = piece.partition(quoted)
    if b"\\" in piece or not found or quoted in after:
        return None
    return Alike(before + b'"', b'"' + after, index, take)
