"""Pieces that differ from one before in nothing but their text, which nearly all of a stream do.

Of a piece that was decoded, what stands around its text is kept. Another that begins and ends with
the very same bytes, and has no quote in between, says the very same but for the text. It is not
decoded: its text is kept as it stands, until somebody asks for it or there is much of it.
"""

from inf_middleware.wire.texts import Group, Texts

# As numbers: to look for bytes in bytes takes eight times as long.
_QUOTE, ESCAPE = b'"\\'

# Bytes of text that are kept unread: some 60 to 100 pieces, and to read that many at a time takes
# hardly more than to read one. Pieces of a single byte take 20 KB together.
KEPT_BYTES_MAX = 512


class Alike:
    """What stands around the text of a piece of a stream, and where the texts of such pieces go.

    There is one at a time for the texts of an answer: `before`, `after` and the group that its text
    is of hold for all that are kept. `room`: bytes of text that may be taken before somebody looks.
    """

    __slots__ = ("_after", "_around", "_before", "_keep", "_since", "_texts", "room")

    def __init__(self, before: bytes, after: bytes, group: Group, texts: Texts) -> None:
        self.room = KEPT_BYTES_MAX
        self._before = before
        self._after = after
        self._around = len(before) + len(after)
        self._texts = texts
        self._keep = texts.keeping(group).append
        self._since = texts.kept

    def pays(self) -> bool:
        """Tell whether pieces were taken since this was asked last."""
        since, self._since = self._since, self._texts.kept
        return self._since > since

    def takes(self, piece: bytes) -> bool:
        """Take the text of a piece that is alike; False where it is another or has no room."""
        if type(piece) is not bytes:
            return False
        text = piece.removeprefix(self._before).removesuffix(self._after)
        size = len(text)
        if len(piece) - size != self._around or not 0 < size <= self.room or _QUOTE in text:
            return False
        self.room -= size
        self._keep(text)
        return True

    def takes_anew(self, piece: bytes) -> bool:
        """Take the text of a piece, which `takes` did not, once there is room again."""
        if len(piece) <= self._around + self.room:
            return False  # it was not for want of room
        self._texts.pack()
        self.room = KEPT_BYTES_MAX
        return self.takes(piece)


def alike_of(piece: bytes, text: str, group: Group, texts: Texts) -> Alike | None:
    """Return what is alike to a piece without an escape, whose only text was decoded.

    None where it is not sure: a quoted text that stands in such a piece once is that text.
    """
    quoted = b'"%s"' % text.encode()
    before, found, after = piece.partition(quoted)
    if not found or quoted in after:
        return None
    return Alike(before + b'"', b'"' + after, group, texts)
