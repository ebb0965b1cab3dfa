"""Pieces that differ from one before in nothing but their text, which nearly all of a stream do.

Of a piece that was decoded, what stands around its text is kept. Another that begins and ends with
the very same bytes, and has no quote in between, says the very same but for the text. It is not
decoded: its text is kept as it stands, until somebody asks for it or there is much of it.
"""

from inf_middleware.wire.texts import Group, Texts

# As numbers: to look for bytes in bytes takes eight times as long.
_QUOTE, ESCAPE = b'"\\'

# Texts that are kept unread, and the longest that is: to read many at a time takes hardly more than
# to read one, and together they take 10 KB at the most.
KEPT_MAX = 64
KEPT_BYTES_MAX = 128


class Alike:
    """What stands around the text of a piece of a stream, and where the texts of such pieces go.

    There is one at a time for the texts of an answer: `before`, `after` and the group that its text
    is of hold for all that are kept.
    """

    __slots__ = (
        "_after",
        "_before",
        "_head",
        "_kept",
        "_middle",
        "_since",
        "_tail",
        "_texts",
        "around",
    )

    def __init__(self, before: bytes, after: bytes, group: Group, texts: Texts) -> None:
        self.around = len(before) + len(after)  # bytes of a piece that are not its text
        self._before = before
        self._after = after
        # Made once, for run for every chunk: `startswith` and `endswith` take longer.
        self._head = slice(len(before))
        self._middle = slice(len(before), -len(after))
        self._tail = slice(-len(after), None)
        self._texts = texts
        self._kept = texts.keeping(group)
        self._since = texts.seen

    def pays(self) -> bool:
        """Tell whether pieces were taken since this was asked last, beside the latest one."""
        since, self._since = self._since, self._texts.seen
        return self._since - since > 1

    def takes(self, piece: bytes) -> bool:
        """Take the text of a piece that is alike; False where it is another, or has none."""
        if piece[self._head] != self._before or piece[self._tail] != self._after:
            return False
        text = piece[self._middle]
        if not text or _QUOTE in text:
            return False
        kept = self._kept
        kept.append(text)
        if len(kept) >= KEPT_MAX or len(text) > KEPT_BYTES_MAX:
            self._texts.read_kept()
        return True


class Within:
    """Takes the texts of pieces that are alike until they have so many bytes together."""

    __slots__ = ("_alike", "_left")

    def __init__(self, alike: Alike, bytes_max: int) -> None:
        self._alike = alike
        self._left = bytes_max

    def takes(self, piece: bytes) -> bool:
        """Take the text of a piece; False where it is another, has none, or would be too much."""
        self._left -= len(piece) - self._alike.around
        return self._left >= 0 and self._alike.takes(piece)


def alike_of(piece: bytes, text: str, group: Group, texts: Texts) -> Alike | None:
    """Return what is alike to a piece without an escape, whose only text was decoded.

    None where it is not sure: a quoted text that stands in such a piece once is that text.
    """
    quoted = b'"%s"' % text.encode()
    before, found, after = piece.partition(quoted)
    if not found or quoted in after:
        return None
    return Alike(before + b'"', b'"' + after, group, texts)
