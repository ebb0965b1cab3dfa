"""Whatever a name is, a page shows it as a text and nothing else."""

import html
from datetime import UTC, date, datetime
from html.parser import HTMLParser
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from inf_middleware import Tier
from inf_middleware.call.refuse import Refuse
from inf_middleware.routes import page
from inf_middleware.routes.gather import AccountShown, BalanceShown, LevelShown, LimitShown
from inf_middleware.routes.markup import tag, text
from inf_middleware.routes.usage import Sums, Usage
from inf_middleware.routes.words import WORDS

NAMES = st.one_of(
    st.text(min_size=1, max_size=40),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            "</style><script>x</script>",
            "</title><svg onload=alert(1)>",
            '" onmouseover="alert(1)',
            "'><img src=//evil.example/x>",
            "{missing} {0} {__class__} %s",
            "&lt;b&gt;&#60;",
            "<!--",
            "]]>",
            "\u202eevil",
            "a\r\nb\x00c\ud800",
        ]
    ),
)

# What is in a page whatever the names are.
# fmt: off
ALLOWED = {
    "html", "head", "meta", "title", "link", "style", "body", "main", "header", "section",
    "div", "span", "p", "h1", "h2", "h3", "ul", "li", "dl", "dt", "dd", "b", "bdi", "small",
    "code", "time", "figure", "svg", "desc", "g", "rect", "details", "summary", "a", "table",
    "thead", "tbody", "tr", "th", "td",
}
ATTRIBUTES = {
    "lang", "charset", "name", "content", "rel", "href", "class", "id", "datetime", "viewbox",
    "preserveaspectratio", "role", "aria-labelledby", "aria-label", "x", "y", "width", "height",
    "scope", "tabindex",
}
# fmt: on


class Read(HTMLParser):
    """Reads a page strictly: every element is one of ours, and is closed in order."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.names: list[str] = []  # the texts of elements for foreign names

    def handle_starttag(self, name: str, attributes: Any) -> None:
        assert name in ALLOWED, name
        assert {key for key, _ in attributes} <= ATTRIBUTES, attributes
        given = dict(attributes)
        assert given.get("href", "") in ("", "data:,")
        if name not in ("meta", "link"):
            self.open.append(name)
        if name == "bdi":
            self.names.append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if "bdi" in self.open:
            self.names[-1] += data
        if "style" not in self.open:
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)

    def handle_pi(self, data: str) -> None:
        raise AssertionError(data)


def read(written: str) -> Read:
    parsed = Read()
    parsed.feed(written.removeprefix("<!doctype html>"))
    parsed.close()
    assert parsed.open == []
    written.encode()  # no surrogates
    return parsed


def shown(account: str, tier: str, following: str, model: str, pattern: str) -> AccountShown:
    sums = Sums(3, 100, 20, 12_345)
    level = LevelShown(
        Tier(tier if tier.strip() else "x", 1, 2, 3),
        pinned=False,
        recharged_nano=0,
        next=Tier(following if following.strip() else "y", 2, 3, 4, recharged_from="5"),
    )
    return AccountShown(
        account=account,
        key_id="abc",
        level=level,
        limits=[LimitShown(pattern, "tokens", 10, 60.0, 4, 1.5)],
        limits_state="here",
        ledger_state="here",
        mode="prepaid",
        currency="CNY",
        balance=BalanceShown(-5, 0, 7),
        usage=Usage(((date(2026, 11, 24), sums),), ((model, sums),)),
        zone=UTC,
        at=datetime(2026, 11, 24, tzinfo=UTC),
    )


@given(NAMES, NAMES, NAMES, NAMES, NAMES, st.sampled_from(["en", "zh"]))
def test_any_name_is_read_back_as_a_text(
    account: str, tier: str, following: str, model: str, pattern: str, language: str
) -> None:
    told = shown(account, tier, following, model, pattern)
    parsed = read(page.account(told, WORDS[language]))
    wanted = {html.unescape(text(name)) for name in (account, told.level.tier.name, model)}
    assert wanted <= set(parsed.names)
    whole = "".join(parsed.texts)
    for name in (pattern, following):
        if name.strip():
            assert html.unescape(text(name)) in whole


@given(NAMES, st.sampled_from([401, 403, 429, 503]), st.sampled_from(["en", "zh"]))
def test_a_refusal_is_a_page_of_texts(code: str, status: int, language: str) -> None:
    parsed = read(page.refusal(Refuse(status, code, code), WORDS[language]))
    assert html.unescape(text(f"{status} {code}")) in "".join(parsed.texts)


@given(NAMES)
def test_an_attribute_holds_what_it_is_given(name: str) -> None:
    seen: list[Any] = []

    class Attributes(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            seen.append((tag, attrs))

    parser = Attributes()
    parser.feed(tag("p", id=name))
    parser.close()
    assert seen == [("p", [("id", html.unescape(text(name)))])]


def test_words_say_all_in_both_languages() -> None:
    english, chinese = WORDS["en"], WORDS["zh"]
    assert english.refused.keys() == chinese.refused.keys()
    for name in english.__dataclass_fields__:
        ours, theirs = getattr(english, name), getattr(chinese, name)
        if isinstance(ours, str):
            assert sorted(part.split("}")[0] for part in ours.split("{")[1:]) == sorted(
                part.split("}")[0] for part in theirs.split("{")[1:]
            ), name
