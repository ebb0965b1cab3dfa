"""Every code block of README and docs runs, or says why it cannot."""

import contextlib
from pathlib import Path

import pytest

from tests.documentation.blocks import PAGES, REASONS, ROOT, Block, blocks_of
from tests.documentation.pages import Page, working_in


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack, working_in(tmp_path):
        Page(tmp_path, stack).run(blocks_of(page))


def test_what_does_not_run_says_why_in_words_that_are_known() -> None:
    unknown = {
        f"{block.where}: {block.not_run}"
        for page in PAGES
        for block in blocks_of(page)
        if block.not_run is not None and block.not_run not in REASONS
    }
    assert unknown == set()


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("rust", "fn main() {}"),
        ("", "anything"),
        ("python", "TierLimiter(accounts={})"),
        ("python", "app.add_middleware(TierLimiter, acounts={})"),
        ("python", "from inf_middleware import Nothing"),
        ("toml", "a = 1"),
        ("json", "{'a': 1}"),
        ("yaml", "a: [1"),
        ("sh", "inf-middleware usage --backwards"),
        ("sh", "pip install 'inf-middleware[everything]'"),
        ("sh", "make coffee"),
        ("sh", "vllm serve tiny --middleware inf_middleware.Gatter"),
        ("sh", "INF_MIDDLEWARE_STORAGES=memory:// inf-middleware config show"),
        ("sh", "inf-middlewares usage"),
        ("console", "$ inf-middleware --version\nanother version"),
    ],
)
def test_a_block_that_is_wrong_is_seen(language: str, text: str, tmp_path: Path) -> None:
    block = Block(ROOT / "README.md", 1, language, None, text)
    with (
        contextlib.ExitStack() as stack,
        working_in(tmp_path),
        pytest.raises(AssertionError, match=r"README\.md:1: "),
    ):
        Page(tmp_path, stack).run([block])


def test_code_by_indentation_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Do this:\n\n    inf-middleware usage\n", "utf-8")
    with pytest.raises(AssertionError, match="by indentation"):
        blocks_of(page)
