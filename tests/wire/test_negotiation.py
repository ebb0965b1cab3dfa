"""What a client would rather have, by its headers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware.wire.negotiation import best_language, prefers_html, weighted

CHROME = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        ("", False),
        ("*/*", False),
        (CHROME, True),
        ("application/json", False),
        ("application/json, text/plain, */*", False),
        ("text/html;q=0.5, application/json", False),
        ("text/html, application/json", True),
        ("text/html;q=0", False),
        ("TEXT/HTML; Q=0.9", True),
        ("text/html;q=2", True),
        ("text/html;q=x", False),
        ("text/html;level=1;q=0.4", True),
    ],
)
def test_a_page_goes_to_who_names_html_and_likes_json_no_better(accept: str, html: bool) -> None:
    assert prefers_html(accept) is html


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-GB,en;q=0.9,zh;q=0.8", "en"),
        ("en;q=0.3, zh;q=0.7", "zh"),
        ("zh-Hant-TW", "zh"),
        ("fr-FR, de;q=0.9", "en"),
        ("fr, zh;q=0.1", "zh"),
        ("zh;q=0, en;q=0.1", "en"),
        ("*", "en"),
        ("en;q=0, *", "zh"),
        ("zh;q=0.5, *;q=0.1", "zh"),
        ("ZH-cn", "zh"),
        ("zho", "en"),
        (";q=1,,zh", "zh"),
    ],
)
def test_the_language_is_the_one_that_is_liked_best(header: str, language: str) -> None:
    assert best_language(header, ("en", "zh")) == language


@given(st.text(max_size=200))
def test_any_header_is_read(header: str) -> None:
    assert best_language(header, ("en", "zh")) in ("en", "zh")
    assert prefers_html(header) in (True, False)
    assert all(0 <= weight <= 1 for _, weight in weighted(header))
