"""The output text of one answer, kept for counting, within a bound."""

from io import StringIO
from typing import Any

import msgspec

from inf_middleware.wire.paths import Tree, collect

# Output text kept for counting, of one answer: eight times the longest output known. What is
# beyond is only measured.
TEXT_BYTES_MAX = 4 * 1024 * 1024

# Choices of one answer that are told apart, far above what servers allow (128 of `n`); the text of
# those beyond goes into one.
CHOICES_MAX = 4096


class Texts:
    """Texts that grow side by side, in pieces; each piece of `cumulative` ones repeats the last.

    `seen`: how many pieces came. `overflow_bytes` of text came after more than is kept.
    """

    __slots__ = ("_cumulative", "_groups", "_size", "overflow_bytes", "seen")

    def __init__(self, *, cumulative: bool) -> None:
        self._cumulative = cumulative
        # Joined as they come: a piece of a few letters takes ten times their memory by itself.
        self._groups: dict[tuple[int, ...], StringIO] = {}
        self._size = 0
        self.seen = 0
        self.overflow_bytes = 0

    def take(self, source: dict[str, Any], tree: Tree, group: tuple[int, ...]) -> bool:
        """Take what of a value is text; tell whether there was any."""
        before = self.seen
        found: list[Any] = []
        collect(source, tree, found)
        for value in found:
            if type(value) is str:
                self.add(value, group)
            elif isinstance(value, list):
                for part in value:
                    text = part.get("text") if isinstance(part, dict) else part
                    if isinstance(text, str) and text:
                        self.add(text, group)
            elif isinstance(value, dict):
                self.add(_compact(value), group)
        return self.seen > before

    @property
    def characters(self) -> int:
        """How much text was seen."""
        return self._size + self.overflow_bytes

    def joined(self) -> list[str]:
        """Return the texts."""
        return [text.getvalue() for text in self._groups.values()]

    def of(self, number: int) -> list[str]:
        """Return the texts whose first number this is, in the order in which they began."""
        return [text.getvalue() for group, text in self._groups.items() if group[0] == number]

    def add(self, text: str, group: tuple[int, ...]) -> None:
        """Take a text that is not empty."""
        self.seen += 1
        kept = self._groups.get(group)
        if kept is None:
            if len(self._groups) >= CHOICES_MAX:
                group = (0,)
            kept = self._groups.setdefault(group, StringIO())
        if self._cumulative:
            self._size -= kept.tell()
            kept = self._groups[group] = StringIO()
        size = self._size + len(text)
        if size <= TEXT_BYTES_MAX:
            self._size = size
            kept.write(text)
        elif self._cumulative:
            self.overflow_bytes = max(self.overflow_bytes, len(text))
        else:
            self.overflow_bytes += len(text)


def piece_of(source: dict[str, Any], tree: Tree) -> str | None:
    """Return the only text of a value; None where there is none, or more to be looked into."""
    piece = None
    for name, value in source.items():
        if value and name in tree:
            if piece is not None or type(value) is not str or tree[name].tree:
                return None
            piece = value
    return piece


def _compact(value: object) -> str:
    try:
        return msgspec.json.encode(value).decode("utf-8")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return repr(value)
