"""The output text of one answer, kept for counting, within a bound."""

from collections.abc import Iterator
from io import StringIO
from typing import Any, TypeAlias

import msgspec

from inf_middleware.wire.body import ODD, read_value
from inf_middleware.wire.paths import Tree, collect

# Output text kept for counting, of one answer: eight times the longest output known. What is
# beyond is only measured.
TEXT_BYTES_MAX = 4 * 1024 * 1024

# Choices of one answer that are told apart, far above what servers allow (128 of `n`); the text of
# those beyond goes into one.
CHOICES_MAX = 4096

# Output text that is kept unread, until there is more: it is read in less than a millisecond.
PACKED_BYTES_MAX = 16 * 1024

# Between texts that are kept unread; none of them has a quote.
_BETWEEN = b'","'

# The numbers that tell texts apart which grow side by side.
Group: TypeAlias = tuple[int, ...]

_decode_texts = msgspec.json.Decoder(list[str]).decode


class Texts:
    """Texts that grow side by side, in pieces; each piece of `cumulative` ones repeats the last."""

    __slots__ = (
        "_cumulative",
        "_groups",
        "_kept",
        "_kept_of",
        "_left",
        "_overflow_bytes",
        "_packed",
        "_packed_bytes",
        "_seen",
        "_size",
    )

    def __init__(self, *, cumulative: bool) -> None:
        self._cumulative = cumulative
        # Joined as they come: a piece of a few letters takes ten times their memory by itself.
        self._groups: dict[Group, StringIO] = {}
        self._size = 0
        self._seen = 0
        self._overflow_bytes = 0
        # As they stand in JSON, to be read when somebody asks, which mostly nobody does; many at a
        # time in one, with `_BETWEEN` between them.
        self._kept: list[bytes] = []
        self._packed: list[bytes] = []
        self._packed_bytes = 0
        self._kept_of: Group = ()
        self._left = 0  # pieces that were ever packed

    def take(self, source: dict[str, Any], tree: Tree, group: Group) -> bool:
        """Take what of a value is text; tell whether there was any."""
        before = self._seen
        found: list[Any] = []
        collect(source, tree, found)
        for value in found:
            if type(value) is str:
                self.add(value, group)
            elif isinstance(value, list):
                for text in _texts_in(value):
                    self.add(text, group)
            elif isinstance(value, dict):
                self.add(_compact(value), group)
        return self._seen > before

    @property
    def seen(self) -> int:
        """How many pieces came."""
        self.read_kept()
        return self._seen

    @property
    def kept(self) -> int:
        """How many pieces were ever kept unread."""
        return self._left + len(self._kept)

    @property
    def overflow_bytes(self) -> int:
        """How much text came after more than is kept."""
        self.read_kept()
        return self._overflow_bytes

    @property
    def characters(self) -> int:
        """How much text was seen."""
        self.read_kept()
        return self._size + self._overflow_bytes

    def joined(self) -> list[str]:
        """Return the texts."""
        self.read_kept()
        return [text.getvalue() for text in self._groups.values()]

    def of(self, number: int) -> list[str]:
        """Return the texts whose first number this is, in the order in which they began."""
        self.read_kept()
        return [text.getvalue() for group, text in self._groups.items() if group[0] == number]

    def add(self, text: str, group: Group, pieces: int = 1) -> None:
        """Take a text that is not empty, of so many pieces."""
        if self._kept or self._packed:
            self.read_kept()
        self._seen += pieces
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
            self._overflow_bytes = max(self._overflow_bytes, len(text))
        else:
            self._overflow_bytes += len(text)

    def keeping(self, group: Group) -> list[bytes]:
        """Return where texts of a group may be left as they stand in JSON, between their quotes.

        None of them is empty or has a quote. Only the latest group that was asked for is kept.
        """
        self.read_kept()
        self._kept_of = group
        return self._kept

    def pack(self) -> None:
        """Keep what was left unread in less memory; there is room for as much again then."""
        if self._kept:
            packed = _BETWEEN.join(self._kept)
            self._left += len(self._kept)
            self._kept.clear()
            self._packed.append(packed)
            self._packed_bytes += len(packed)
            if self._cumulative or self._packed_bytes > PACKED_BYTES_MAX:
                self.read_kept()

    def read_kept(self) -> None:
        """Read what was left to be read: before another text comes, and where there is much."""
        if not (self._kept or self._packed):
            return
        kept = _BETWEEN.join([*self._packed, *self._kept])
        self._left += len(self._kept)
        self._kept.clear()
        self._packed.clear()
        self._packed_bytes = 0
        texts = _texts_of(kept)
        joined = "".join(texts)
        if not self._cumulative and self._size + len(joined) <= TEXT_BYTES_MAX:
            self.add(joined, self._kept_of, len(texts))
        else:
            for text in texts:
                self.add(text, self._kept_of)


def _texts_of(kept: bytes) -> list[str]:
    """Return texts from how they stand in JSON, without those that cannot stand there."""
    try:
        # One that escapes the quote behind it turns texts and commas around, to the end, where a
        # quote is left over: that is no JSON.
        return _decode_texts(b'["' + kept + b'"]')
    except ODD:
        read = [read_value(b'"' + text + b'"') for text in kept.split(_BETWEEN)]
        return [text for text in read if isinstance(text, str)]


def _texts_in(parts: list[Any]) -> Iterator[str]:
    """Give the texts of a list of parts; those that think have a list of their own (Mistral)."""
    for part in parts:
        text = part
        if isinstance(part, dict):
            text = part.get("text") or part.get("thinking")
        for one in text if isinstance(text, list) else [text]:
            found = one.get("text") if isinstance(one, dict) else one
            if isinstance(found, str) and found:
                yield found


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
