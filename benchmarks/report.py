"""The figures as Markdown, as a plot and as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table of targets; `met` is None where it is shown and not aimed at."""

    what: str
    target: str
    measured: str
    met: bool | None

    @property
    def verdict(self) -> str:
        """Say it in words."""
        return "shown" if self.met is None else "met" if self.met else "**not met**"


@dataclass(frozen=True)
class Table:
    """Figures side by side."""

    title: str
    heads: Sequence[str]
    lines: Sequence[Sequence[str]]


def below(what: str, value: float, bound: float, unit: str = "×", digits: int = 2) -> Row:
    """Make a row whose figure must not be above its bound."""
    return Row(what, f"≤ {bound:g} {unit}", f"{value:.{digits}f} {unit}", value <= bound)


def above(what: str, value: float, bound: float, unit: str = "×", digits: int = 2) -> Row:
    """Make a row whose figure must not be below its bound."""
    return Row(what, f"≥ {bound:g} {unit}", f"{value:.{digits}f} {unit}", value >= bound)


def markdown(machine: Mapping[str, Any], rows: Sequence[Row], tables: Sequence[Table]) -> str:
    """Write everything as one page."""
    parts = ["# Measured", "", "Ratios are of one run, medians of interleaved rounds.", ""]
    parts += [f"- {name}: {value}" for name, value in machine.items()]
    targets = Table(
        "Targets",
        ("what", "target", "measured", "verdict"),
        [(row.what, row.target, row.measured, row.verdict) for row in rows],
    )
    for table in (targets, *tables):
        parts += ["", f"## {table.title}", ""]
        parts.append(f"| {' | '.join(table.heads)} |")
        right = ["---", *["---:"] * (len(table.heads) - 1)]
        parts.append(f"| {' | '.join(right)} |")
        parts += [f"| {' | '.join(line)} |" for line in table.lines]
    return "\n".join(parts) + "\n"


_BAR, _GAP, _LEFT, _WIDTH = 18, 8, 260, 480


def plot(title: str, bars: Sequence[tuple[str, float]], unit: str) -> str:
    """Draw horizontal bars as SVG; ours are dark, and what is far beyond the others is cut."""
    values = sorted(value for _, value in bars)
    most = min(values[-1], 4 * max(values[len(values) // 2], 1e-9)) or 1.0
    height = len(bars) * (_BAR + _GAP) + 48
    size = f'width="{_LEFT + _WIDTH + 120}" height="{height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="20" font-size="14">{escape(title)}</text>',
    ]
    for number, (name, value) in enumerate(bars):
        top = 36 + number * (_BAR + _GAP)
        width = max(min(value, most) / most * _WIDTH, 1)
        ours = name.startswith(("TokenMeter", "TierLimiter", "CostLedger", "all three"))
        fill = "#1f4e79" if ours else "#b9c4cf"
        cut = " (cut)" if value > most else ""
        lines += [
            f'<text x="{_LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(name)}</text>',
            f'<rect x="{_LEFT}" y="{top}" width="{width:.0f}" height="{_BAR}" fill="{fill}"/>',
            f'<text x="{_LEFT + width + 6:.0f}" y="{top + 13}">{value:.2f} {unit}{cut}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"


def as_json(
    machine: Mapping[str, Any], rows: Sequence[Row], tables: Sequence[Table]
) -> dict[str, Any]:
    """Return everything as JSON values."""
    return {
        "machine": dict(machine),
        "targets": [{**asdict(row), "verdict": row.verdict.strip("*")} for row in rows],
        "tables": [
            {
                "title": table.title,
                "lines": [dict(zip(table.heads, line, strict=True)) for line in table.lines],
            }
            for table in tables
        ],
    }
