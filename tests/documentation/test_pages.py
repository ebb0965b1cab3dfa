"""What the pages say beside their code: tests that they name, tables that repeat data, links."""

import re
import tomllib
from pathlib import Path

import pytest

from inf_middleware.settings import DEFAULTS
from tests.documentation.blocks import PAGES, ROOT, Block, blocks_of

_SHOWN_BY = re.compile(r"<!-- shown by: (.*?)-->", re.DOTALL)
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_what_is_said_to_be_shown_by_a_test_is() -> None:
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    missing = {
        name
        for page in PAGES
        for names in _SHOWN_BY.findall(page.read_text("utf-8"))
        for name in names.replace(",", " ").split()
        if not re.search(rf"def {name}\(", tests)
    }
    assert missing == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text("utf-8")) if ":" not in link]
    missing = [link for link in links if not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "docs/index.md"])
def test_the_table_of_extras_is_that_of_the_package(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    page = (ROOT / name).read_text("utf-8")
    told = set(re.findall(r"^\| `inf-middleware\[([\w-]+)\]` \|", page, re.MULTILINE))
    assert told == set(project["optional-dependencies"])


def test_the_page_of_options_names_each() -> None:
    page = (ROOT / "docs" / "options.md").read_text("utf-8")
    assert [option for option in DEFAULTS if f"`{option}`" not in page] == []


def test_both_readmes_have_the_same_code() -> None:
    english, chinese = (blocks_of(ROOT / name) for name in ("README.md", "README.zh-CN.md"))

    def code(blocks: list[Block]) -> list[tuple[str, str]]:
        """All but comments, which each says in its own language, and what programs print."""
        return [
            (block.language, re.sub(r"\s*#.*", "", block.text).strip())
            for block in blocks
            if block.language != "text"
        ]

    assert code(english) == code(chinese)
