"""Tables for terminals: aligned, wide characters and control characters minded."""

import unicodedata
from collections.abc import Sequence


def table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int, total: bool = True
) -> str:
    """Return a table whose first `left` columns are aligned to the left, the others to the right.

    A last row of totals is set apart by a line.
    """
    shown = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(width, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        cells = []
        for number, (cell, wide) in enumerate(zip(row, widths, strict=True)):
            padding = " " * (wide - width(cell))
            cells.append(cell + padding if number < left else padding + cell)
        lines.append("  ".join(cells).rstrip())
    rule = "  ".join("-" * wide for wide in widths)
    body = [*lines[1:-1], rule, lines[-1]] if total else lines[1:]
    return "\n".join([lines[0], rule, *body])


def printable(text: str) -> str:
    """Return a text with what a terminal might obey written as escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def width(text: str) -> int:
    """Return how many columns a text takes in a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )
