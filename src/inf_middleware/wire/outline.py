"""The parts of a streamed answer, as its events open and close them: what a cut has to close."""

from dataclasses import dataclass
from typing import Any

from inf_middleware.wire.form import PartsAt

# Parts of one answer that are kept, far above what models make (tool calls run in the dozens).
PARTS_MAX = 4096

# What names a part and is short; its text is kept elsewhere, within its bound.
_KEPT = ("id", "type", "role", "name", "call_id")


@dataclass(slots=True)
class Part:
    """One part: what names it, and whether it is still open."""

    named: dict[str, Any]
    is_open: bool = True


class Outline:
    """The parts of one answer, by the event that closes each and its number among its kind.

    `first_number` is that of the first event, `last_number` that of the latest. `is_known`: that is
    none after `known_to`, so that what it says was read before.
    """

    __slots__ = ("_at", "first_number", "is_known", "known_to", "last_number", "parts")

    def __init__(self, at: PartsAt) -> None:
        self._at = at
        self.parts: dict[tuple[str, int], Part] = {}
        self.first_number = self.last_number = self.known_to = -1
        self.is_known = False

    @property
    def open(self) -> list[tuple[str, int]]:
        """The parts that are not closed: the event that would close each, and its number."""
        return [key for key, part in self.parts.items() if part.is_open]

    def heeds(self, kind: str) -> bool:
        """Whether events of a type change anything here."""
        at = self._at
        return bool(at.sequence) or kind in at.closed_by or kind in at.closing

    def note(self, kind: str, value: dict[str, Any]) -> None:
        """Take note of an event."""
        at = self._at
        if at.sequence:
            latest = value.get(at.sequence)
            self.last_number = latest if type(latest) is int else self.last_number + 1
            self.is_known = self.last_number <= self.known_to
            if self.first_number < 0:
                self.first_number = self.last_number
        opened = at.closed_by.get(kind)
        if opened is None and kind not in at.closing:
            return
        number = value.get(at.number)
        if type(number) is not int:
            return
        if opened is None:
            known = self.parts.get((kind, number))
            if known is not None:
                known.is_open = False
            return
        part = value.get(at.part) if at.part else {}
        if isinstance(part, dict) and len(self.parts) < PARTS_MAX:
            named = {name: part[name] for name in _KEPT if name in part}
            self.parts[opened, number] = Part(named)
