"""The code blocks of a page, as CommonMark sees them, and what is said about each.

A fence names its language, and may name the file that it shows: ```` ```toml title="inf.toml" ````;
TOML without a name is an excerpt of the settings file.
A block that cannot run here has its reason in a comment of the page's source, right above it:
`<!-- not run: needs a model server of its own -->`. There are no other reasons than these. A file
that code needs and readers do not is in a comment as well: `<!-- file: accounts.toml`, its lines,
and `-->`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").rglob("*.md")])

REASONS = {
    "needs a model server of its own",
    "needs a service of its own",
    "needs a graphics card",
    "shows what another block does",
}

_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$", re.DOTALL)
_FILE = re.compile(r"<!-- file: (\S+)\n(.*?)-->", re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None = None

    @property
    def where(self) -> str:
        return f"{_name_of(self.page)}:{self.line}"


def _name_of(page: Path) -> str:
    return str(page.relative_to(ROOT) if page.is_relative_to(ROOT) else page)


def blocks_of(page: Path) -> list[Block]:
    """Read the code blocks of a page, in order."""
    found = []
    above = ""
    for token in MarkdownIt("commonmark").parse(page.read_text("utf-8")):
        line = token.map[0] + 1 if token.map else 0
        if token.type == "code_block":
            raise AssertionError(
                f"{_name_of(page)}:{line}: code by indentation; write a fence that names"
                " its language, so that it is run"
            )
        if token.type == "fence":
            language, _, more = token.info.strip().partition(" ")
            title = _TITLE.search(more)
            reason = _NOT_RUN.search(above)
            found.append(
                Block(
                    page,
                    line,
                    language,
                    title[1] if title else None,
                    token.content,
                    reason[1] if reason else None,
                )
            )
        if token.type == "html_block":
            found += [
                Block(page, line, "file", name, text) for name, text in _FILE.findall(token.content)
            ]
        above = token.content if token.type == "html_block" else ""
    return found
