"""A long event in small pieces takes work in proportion to its length, whoever reads it.

Work is counted, not timed: the bytes that are searched, copied or put together.
"""

import re
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self, SupportsIndex, cast

import pytest

from inf_middleware.wire.ndjson import NDJSONReader
from inf_middleware.wire.sse import SSEReader

PIECE_BYTES = 1_000
PIECES = 1_600

# What looks at all bytes of what it belongs to.
SEARCHES = {"find", "rfind", "index", "count", "split", "splitlines", "partition", "strip"}


class Work:
    """Counts the bytes that are touched while it is entered."""

    def __init__(self) -> None:
        self.touched = 0
        self.fed = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def piece(self, data: bytes) -> "Piece":
        """Make a piece whose operators count."""
        piece = Piece(data)
        piece.work = self
        self.fed += len(data)
        return piece

    def _called(self, _frame: FrameType, event: str, called: Any) -> None:
        if event != "c_call":
            return
        owner = getattr(called, "__self__", None)
        if called.__name__ in SEARCHES and isinstance(owner, bytes | bytearray):
            self.touched += len(owner)
        elif called.__name__ in ("join", "search", "match", "finditer", "findall"):
            self.touched += self.fed  # it may be of all that came until now


class Piece(bytes):
    """Bytes that tell when an operator looks at them, and whose parts do so, too."""

    work: Work

    def _part(self, data: bytes) -> "Piece":
        part = Piece(data)
        part.work = self.work
        self.work.touched += len(data)
        return part

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return self._part(found) if isinstance(found, bytes) else found

    def __add__(self, other: Any) -> bytes:
        return self._part(bytes(self) + bytes(other))

    def __radd__(self, other: Any) -> bytes:
        return self._part(bytes(other) + bytes(self))

    def __contains__(self, key: SupportsIndex | Any) -> bool:
        self.work.touched += len(self)
        return super().__contains__(key)


class Concatenating:
    """Puts all together at each piece, and looks into all of it."""

    def __init__(self) -> None:
        self.buffer = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        self.buffer += chunk
        return [self.buffer] if b"\n\n" in self.buffer else []


class Joining:
    """Joins all pieces at each piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []

    def feed(self, chunk: bytes) -> list[bytes]:
        self.pieces.append(chunk)
        whole = b"".join(self.pieces)
        return [whole] if whole.endswith(b"\n\n") else []


class Searching:
    """Keeps one buffer, and searches it from its beginning at each piece."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def feed(self, chunk: bytes) -> list[bytes]:
        self.buffer.extend(chunk)
        return [bytes(self.buffer)] if self.buffer.find(b"\n\n") >= 0 else []


class Matching(Searching):
    """The same by a regular expression."""

    def feed(self, chunk: bytes) -> list[bytes]:
        self.buffer.extend(chunk)
        return [bytes(self.buffer)] if re.compile(b"\n\n").search(self.buffer) else []


def work_of(make: Callable[[], Any], pieces: int) -> float:
    """Return how often a reader touches each byte of one event."""
    reader, work = make(), Work()
    chunks = [b"data: ", *[b"x" * PIECE_BYTES] * pieces, b"\n\n"]
    frames = []
    with work:
        for chunk in chunks:
            frames += reader.feed(work.piece(chunk))
    assert len(bytes(cast("Any", getattr(frames[0], "raw", frames[0])))) >= pieces * PIECE_BYTES
    return work.touched / work.fed


@pytest.mark.parametrize("make", [SSEReader, NDJSONReader])
def test_each_byte_of_a_long_event_is_touched_a_few_times_however_many_there_are(
    make: Any,
) -> None:
    few, many = work_of(make, PIECES // 8), work_of(make, PIECES)
    assert many < 10
    assert many < 1.1 * few


@pytest.mark.parametrize("make", [Concatenating, Joining, Searching, Matching])
def test_the_count_finds_what_is_quadratic(make: Any) -> None:
    few, many = work_of(make, PIECES // 8), work_of(make, PIECES)
    assert many > 6 * few
