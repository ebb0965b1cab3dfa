"""The account's page in a real browser: whole, quiet, as wide as its window, without a script."""

import itertools
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.devtools import Page, a_page
from tests.routes.pages import EVIL, build, fill
from tests.servers import serving

PHONE, DESKTOP = 360, 1280

# By a page that is shown whole, and by one that a policy stops.
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
STOPPED = """new Promise((resolve) => {
  document.addEventListener("securitypolicyviolation", (e) => resolve(e.effectiveDirective));
  const made = document.createElement("%s");
  %s
  document.body.append(made);
})"""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("page") / "l.db"
    fill(path, "acme", models=["inf-chat-v1", "Qwen/" + "x" * 90, *map(str, range(9))])
    fill(path, EVIL, models=[EVIL, '"><img src="//evil.example/x">'], days=2)
    with serving(build(path)) as url:
        yield url


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with a_page(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(autouse=True)
def new(page: Page) -> None:
    page.password = None
    page.logged.clear()
    page.asked.clear()
    page.do("Network.clearBrowserCache")


def fresh(url: str) -> str:
    """An address that the browser knows no password for: it keeps one for each name."""
    return f"http://host-{next(_HOSTS)}.localhost:{urlsplit(url).port}/account"


_HOSTS = itertools.count()


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("language", ["en-GB", "zh-CN"])
@pytest.mark.parametrize("key", ["sk-acme", "sk-empty", "sk-evil", "sk-long"])
def test_the_page_fits_is_quiet_and_loads_nothing_else(
    url: str, page: Page, width: int, dark: bool, language: str, key: str
) -> None:
    page.password = key
    here = fresh(url)
    page.show(here, width=width, dark=dark, language=language)
    assert page.run("document.querySelectorAll('.card').length") == 4
    # Also with its tables open.
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.run(OVERFLOW) == 0
    assert page.run("document.documentElement.lang") == language[:2]
    paper = page.run("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(246, 246, 244)") is not dark
    assert not [text for text in page.logged if "401" not in text]  # as which it asks for the key
    assert {urlsplit(asked).path for asked in page.asked} - {","} == {"/account"}
    assert {urlsplit(asked).hostname for asked in page.asked} - {None} == {urlsplit(here).hostname}


@pytest.mark.parametrize(
    ("kind", "fill_in", "directive"),
    [
        ("script", "made.textContent = 'window.ran = true';", "script-src-elem"),
        ("script", "made.src = 'http://evil.example/x.js';", "script-src-elem"),
        ("img", "made.src = 'http://evil.example/x.png';", "img-src"),
        ("iframe", "made.src = '/account';", "frame-src"),
        ("style", "made.textContent = 'body { display: none }';", "style-src-elem"),
        ("p", "made.setAttribute('style', 'color: red');", "style-src-attr"),
        (
            "p",
            "made.setAttribute('onclick', 'window.ran = true'); made.click();",
            "script-src-attr",
        ),
    ],
)
def test_what_gets_into_the_page_all_the_same_is_stopped(
    url: str, page: Page, kind: str, fill_in: str, directive: str
) -> None:
    page.password = "sk-acme"
    page.show(fresh(url), width=DESKTOP)
    assert page.run(STOPPED % (kind, fill_in)) == directive
    assert page.run("window.ran") is None


def test_an_account_named_script_is_shown_and_not_run(url: str, page: Page) -> None:
    page.password = "sk-evil"
    page.show(fresh(url), width=PHONE)
    assert page.run("document.querySelector('h1').textContent") == EVIL
    assert page.run("document.querySelectorAll('script, img').length") == 0
    assert EVIL in page.run("document.body.innerText")


def test_a_wrong_key_is_asked_for_again_and_then_told(url: str, page: Page) -> None:
    for key in (None, "sk-wrong"):
        page.password = key
        page.show(fresh(url), width=PHONE, language="zh-CN")
        assert page.run("document.querySelector('h1').textContent") == "需要有效的 API 密钥"
        assert "401 invalid_api_key" in page.run("document.body.innerText")
        assert page.run(OVERFLOW) == 0


def test_the_charts_say_to_ears_what_they_show_to_eyes(url: str, page: Page) -> None:
    page.password = "sk-acme"
    page.show(fresh(url), width=DESKTOP)
    names = """Array.from(document.querySelectorAll("svg.columns")).map((one) =>
        one.getAttribute("aria-labelledby").split(" ").map((id) =>
            document.getElementById(id).textContent))"""
    (tokens, said), (cost, _) = page.run(names)
    assert (tokens, cost) == ("Tokens by day", "Cost by day")
    total = page.run("document.querySelectorAll('.tiles dd')[1].firstChild.textContent")
    assert said.startswith(f"{total} tokens from ")
    bars = "document.querySelectorAll('svg.columns')[0].querySelectorAll('g').length"
    assert page.run(bars) == 30
    rows = "document.querySelectorAll('details')[0].querySelectorAll('tbody tr').length"
    assert page.run(rows) == 30
