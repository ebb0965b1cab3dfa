"""The account's page: one document that asks for nothing else, and runs nothing."""

import base64
import hashlib
from importlib.resources import files
from itertools import groupby

from inf_middleware.call.refuse import Refuse
from inf_middleware.domain.tiers import Tier
from inf_middleware.routes.charts import share
from inf_middleware.routes.figures import duration, money, number
from inf_middleware.routes.gather import AccountShown, BalanceShown, LevelShown, LimitShown
from inf_middleware.routes.markup import Child, Html, foreign, joined, tag
from inf_middleware.routes.usage_page import usage
from inf_middleware.routes.words import Words

_STYLE = (files("inf_middleware.routes") / "page.css").read_text("utf-8")
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

# The one style by its hash, an icon that is empty, and nothing else whatever text gets in.
POLICY = (
    f"default-src 'none'; style-src 'sha256-{_HASH}'; img-src data:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)


def account(shown: AccountShown, words: Words) -> str:
    """Write the page of an account."""
    local = shown.at.astimezone(shown.zone)
    key = None if shown.key_id is None else joined(f" · {words.key} ", tag("code", shown.key_id))
    at = tag("time", f"{local:%Y-%m-%d %H:%M:%S} {local:%Z}", datetime=local.isoformat("T"))
    return _document(
        words,
        tag(
            "header",
            tag("h1", foreign(shown.account)),
            tag("p", f"{words.at} ", at, key, class_="soft"),
        ),
        tag(
            "div",
            _level(shown.level, shown.currency, words),
            _balance(shown, words),
            _limits(shown, words),
            usage(shown, words),
            class_="cards",
        ),
    )


def refusal(refuse: Refuse, words: Words) -> str:
    """Write the page of a request that is refused."""
    headline, advice = words.refused.get(refuse.code, words.refused_other)
    return _document(
        words,
        tag(
            "section",
            tag("h1", headline),
            tag("p", advice),
            tag("p", tag("a", words.reload, href="")),
            tag("p", tag("code", f"{refuse.status} {refuse.code}"), class_="soft"),
            class_="card refused",
        ),
    )


def _document(words: Words, *parts: Child) -> str:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("title", words.title),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="robots", content="noindex"),
        tag("link", rel="icon", href="data:,"),  # or a browser asks for one
        tag("style", Html(_STYLE)),
    )
    return "<!doctype html>\n" + tag(
        "html", head, tag("body", tag("main", *parts)), lang=words.lang
    )


def _card(title: str, *children: Child, wide: bool = False) -> Html:
    return tag("section", tag("h2", title), *children, class_="card wide" if wide else "card")


def _level(level: LevelShown, currency: str, words: Words) -> Html:
    recharged = money(level.recharged_nano, currency)
    named = tag("p", tag("span", foreign(level.tier.name), class_="badge"), class_="level")
    if level.next is None:
        note = words.level_pinned if level.pinned else words.level_top
        more: tuple[Child, ...] = (tag("p", note, class_="note"),)
    else:
        boundary = level.next.recharged_from_nano
        title = f"{recharged} / {money(boundary, currency)}"
        said = words.level_next.format(
            missing=money(level.missing_nano, currency), level=level.next.name
        )
        more = (
            share(level.recharged_nano, boundary, "in", title),
            tag("p", said),
            tag("p", _of_level(level.next, words), class_="soft"),
        )
    if not level.pinned:
        facts = joined(tag("dt", words.recharged), tag("dd", recharged))
        more = (*more, tag("dl", facts, class_="facts"))
    return _card(words.level, named, *more)


def _of_level(tier: Tier, words: Words) -> str:
    return words.per_level.format(
        concurrency=number(tier.concurrency),
        requests=number(tier.requests_per_minute),
        tokens=number(tier.tokens_per_minute),
    )


def _balance(shown: AccountShown, words: Words) -> Html:
    balance = shown.balance
    if balance is None:
        is_away = shown.ledger_state == "away"
        note = words.usage_away if is_away else words.usage_none
        return _card(words.balance, tag("p", note, class_="warn" if is_away else "soft"))
    mode = words.prepaid if shown.mode == "prepaid" else words.postpaid
    if balance.balance_nano < 0:
        mode = f"{mode} {words.owed}"
    return _card(
        words.balance,
        tag("p", money(balance.balance_nano, shown.currency), class_="big"),
        _facts_of(balance, shown, words),
        tag("p", mode, class_="note"),
    )


def _facts_of(balance: BalanceShown, shown: AccountShown, words: Words) -> Html | None:
    facts = []
    if balance.credit_limit_nano:
        facts += [(words.credit_limit, balance.credit_limit_nano)]
    if shown.mode == "prepaid":
        facts = [
            (words.held, balance.held_nano),
            *facts,
            (words.available, balance.available_nano),
        ]
    pairs = [
        joined(tag("dt", name), tag("dd", money(nano, shown.currency))) for name, nano in facts
    ]
    return tag("dl", *pairs, class_="facts") if pairs else None


def _limits(shown: AccountShown, words: Words) -> Html:
    if shown.limits_state == "none":
        return _card(words.limits, tag("p", words.limits_none, class_="soft"), wide=True)
    groups: list[Child] = []
    for model, limits in groupby(shown.limits, lambda limit: limit.model):
        if model is not None:
            groups.append(tag("h3", words.for_model.format(model=model)))
        groups.append(tag("ul", *[_limit(one, words) for one in limits], class_="limits"))
    note = tag("p", words.limits_note, class_="note")
    if shown.limits_state == "away":
        note = tag("p", words.limits_away, class_="note warn")
    return _card(words.limits, *groups, note, wide=True)


def _limit(limit: LimitShown, words: Words) -> Html:
    name = {
        "concurrency": words.concurrency,
        "requests": words.requests,
        "tokens": words.tokens,
    }[limit.kind]
    if limit.window_s:
        per = words.per.get(limit.window_s) or words.per_seconds.format(
            seconds=f"{limit.window_s:,g}"
        )
        name = words.rate.format(kind=name, per=per)
    of = words.of_limit.format(limit=number(limit.limit))
    if limit.remaining is None:
        return tag("li", tag("p", name), tag("p", f"{words.unknown} {of}", class_="soft"))
    before, after = words.left
    left = number(limit.remaining)
    note = None
    if limit.reset_s and limit.used:
        note = words.full_again.format(wait=duration(limit.reset_s, words.units))
    return tag(
        "li",
        tag("p", name),
        tag("p", before, tag("b", left), after, tag("span", of, class_="soft")),
        share(limit.remaining, limit.limit, "in", f"{name}: {before}{left}{after}{of}"),
        tag("p", note, class_="soft") if note else None,
    )
