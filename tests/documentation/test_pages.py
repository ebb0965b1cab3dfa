"""What the pages say beside their code: tests that they name, tables that repeat data, links."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documentation.blocks import PAGES, ROOT

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


def test_heavy_packages_wait_until_they_are_needed() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import inf_middleware, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    heavy = {"apsw", "asyncpg", "click", "fastapi", "httpx", "jwt", "limits", "redis", "tiktoken"}
    assert heavy & set(told.stdout.split()) == set()
