"""Bars as inline SVG, without text in them: they stretch with the page, and text must not."""

from collections.abc import Sequence
from typing import NamedTuple

from inf_middleware.routes.markup import Html, joined, tag

# A chart's own units; widths are those of its bars.
_HEIGHT = 100.0

# Part of its place that a bar leaves free.
_GAP = 0.24

# The least that is seen of what is not nothing.
_SEEN = 1.5


class Bar(NamedTuple):
    """A bar of parts on one another, each with its class; `title` is told to who points at it."""

    title: str
    parts: Sequence[tuple[str, int]]

    @property
    def total(self) -> int:
        """The sum of its parts."""
        return sum(max(value, 0) for _, value in self.parts)


def columns(bars: Sequence[Bar], *, name: str, title: str, description: str) -> Html:
    """Draw bars side by side; `name` tells the chart from others of the page."""
    most = max((bar.total for bar in bars), default=0)
    drawn = [_column(place, bar, most) for place, bar in enumerate(bars)]
    return tag(
        "svg",
        tag("title", title, id=f"{name}-title"),
        tag("desc", description, id=f"{name}-desc"),
        *drawn,
        class_="columns",
        viewBox=f"0 0 {len(bars)} {_HEIGHT:g}",
        preserveAspectRatio="none",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


def _column(place: int, bar: Bar, most: int) -> Html:
    # The whole column can be pointed at, also where there is little in it.
    parts = [_rect("touch", place, 0.0, 1.0, _HEIGHT)]
    top = _HEIGHT
    for kind, value in bar.parts:
        if value > 0:
            height = max(value * _HEIGHT / most, _SEEN)
            top = max(top - height, 0.0)
            parts.append(_rect(kind, place + _GAP / 2, top, 1 - _GAP, height))
    return tag("g", tag("title", bar.title), joined(*parts))


def share(value: int, most: int, kind: str, title: str) -> Html:
    """Draw one bar that lies: so much of the most."""
    width = 0.0 if value <= 0 or most <= 0 else max(min(value * 100.0 / most, 100.0), _SEEN)
    return tag(
        "svg",
        tag("title", title),
        _rect("track", 0.0, 0.0, 100.0, 1.0),
        _rect(kind, 0.0, 0.0, width, 1.0) if width else None,
        class_="share",
        viewBox="0 0 100 1",
        preserveAspectRatio="none",
        role="img",
    )


def _rect(kind: str, x: float, y: float, width: float, height: float) -> Html:
    return tag(
        "rect",
        class_=kind,
        x=f"{x:.4g}",
        y=f"{y:.4g}",
        width=f"{width:.4g}",
        height=f"{height:.4g}",
    )
