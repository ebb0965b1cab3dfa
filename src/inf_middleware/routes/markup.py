"""HTML that cannot be broken out of: text is escaped unless it was made here."""

import html
import re
from typing import TypeAlias

# Signs that a parser would drop or change (controls but tab and line feed, surrogates,
# noncharacters); shown as the sign for what cannot be shown.
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Html(str):
    """Markup; every other text is escaped where it is put into some."""

    __slots__ = ()


Child: TypeAlias = "Html | str | None"

_VOID = frozenset({"meta", "link", "br"})


def tag(name: str, /, *children: Child, **attributes: str) -> Html:
    """Make an element; `class_` is `class`, and `_` in other names is `-`."""
    given = "".join(
        f' {"class" if key == "class_" else key.replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
    )
    if name in _VOID:
        return Html(f"<{name}{given}>")
    return Html(f"<{name}{given}>{joined(*children)}</{name}>")


def joined(*children: Child) -> Html:
    """Put markup and texts one after the other."""
    return Html(
        "".join(
            child if isinstance(child, Html) else text(child)
            for child in children
            if child is not None
        )
    )


def text(value: str) -> Html:
    """Escape a text, for an element or an attribute."""
    return Html(html.escape(_NO_TEXT.sub("\N{REPLACEMENT CHARACTER}", value), quote=True))


def foreign(value: str) -> Html:
    """Show a text of unknown origin: its direction of writing stays its own."""
    return tag("bdi", value)
