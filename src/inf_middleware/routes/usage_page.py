"""Tokens and cost by day and by model, drawn and as tables."""

from collections.abc import Callable, Sequence
from datetime import date

from inf_middleware.routes.charts import Bar, columns, share
from inf_middleware.routes.figures import money, number
from inf_middleware.routes.gather import AccountShown
from inf_middleware.routes.markup import Child, Html, foreign, joined, tag
from inf_middleware.routes.record import MODELS_SHOWN
from inf_middleware.routes.usage import DAYS, Sums, Usage, most_used
from inf_middleware.routes.words import Words


def usage(shown: AccountShown, words: Words) -> Html:
    """Write the card of an account's usage."""
    title = tag("h2", words.usage.format(days=DAYS))
    if shown.usage is None:
        is_away = shown.ledger_state == "away"
        note = words.usage_away if is_away else words.usage_none
        said = tag("p", note, class_="warn" if is_away else "soft")
    elif not shown.usage.total.requests and not shown.usage.total.amount_nano:
        said = tag("p", words.usage_empty, class_="soft")
    else:
        said = _usage(shown.usage, shown.currency, str(shown.zone), words)
    return tag("section", title, said, class_="card wide")


def _usage(usage: Usage, currency: str, zone: str, words: Words) -> Html:
    models = most_used(usage, MODELS_SHOWN)
    return joined(
        _tiles(usage.total, currency, words),
        tag("div", _tokens(usage, words), _costs(usage, currency, words), class_="charts"),
        _table(
            words.day,
            [(Html(day.isoformat()), sums) for day, sums in reversed(usage.by_day)],
            currency,
            words,
        ),
        tag("h2", words.by_model, class_="parts"),
        tag("ul", *_models(models, currency, words), class_="models"),
        _table(
            words.model,
            [(_model(model, words), sums) for model, sums in models],
            currency,
            words,
        ),
        tag("p", words.days_in.format(zone=zone), class_="note"),
    )


def _tiles(total: Sums, currency: str, words: Words) -> Html:
    parts = f"{words.input} {number(total.input_tokens)} · {words.output} "
    tiles = (
        (words.requests, number(total.requests), None),
        (
            words.tokens,
            number(total.total_tokens),
            tag("small", parts, number(total.output_tokens)),
        ),
        (words.cost, money(total.amount_nano, currency), None),
    )
    return tag(
        "dl",
        *[tag("div", tag("dt", name), tag("dd", value, small)) for name, value, small in tiles],
        class_="tiles",
    )


def _tokens(usage: Usage, words: Words) -> Html:
    bars = [
        Bar(
            f"{day}: {number(sums.total_tokens)}",
            [("in", sums.input_tokens), ("out", sums.output_tokens)],
        )
        for day, sums in usage.by_day
    ]
    legend = joined(
        tag("span", words.input, class_="key"), tag("span", words.output, class_="key is-out")
    )
    return _chart(
        "tokens",
        words.tokens_by_day,
        words.chart_tokens,
        bars,
        usage,
        (lambda sums: sums.total_tokens, number),
        legend,
    )


def _costs(usage: Usage, currency: str, words: Words) -> Html:
    bars = [
        Bar(f"{day}: {money(sums.amount_nano, currency)}", [("cost", sums.amount_nano)])
        for day, sums in usage.by_day
    ]
    return _chart(
        "cost",
        words.cost_by_day,
        words.chart_cost,
        bars,
        usage,
        (lambda sums: sums.amount_nano, lambda nano: money(nano, currency)),
        None,
    )


def _chart(
    name: str,
    title: str,
    description: str,
    bars: Sequence[Bar],
    usage: Usage,
    figure: tuple[Callable[[Sums], int], Callable[[int], str]],
    legend: Child,
) -> Html:
    value_of, written = figure
    (first, _), (last, _) = usage.by_day[0], usage.by_day[-1]
    day, sums = max(usage.by_day, key=lambda one: value_of(one[1]))
    most = written(value_of(sums))
    said = description.format(
        first=first, last=last, total=written(value_of(usage.total)), most=most, day=day
    )
    return tag(
        "figure",
        tag("h3", title),
        tag("p", tag("span", most), tag("span", legend), class_="axis"),
        columns(bars, name=name, title=title, description=said),
        tag("p", _day(first), _day(last), class_="axis"),
    )


def _day(day: date) -> Html:
    return tag("time", day.isoformat(), datetime=day.isoformat())


def _models(models: Sequence[tuple[str | None, Sums]], currency: str, words: Words) -> list[Html]:
    most_tokens = max((sums.total_tokens for _, sums in models), default=0)
    most_cost = max((sums.amount_nano for _, sums in models), default=0)
    drawn = []
    for model, sums in models:
        tokens, cost = number(sums.total_tokens), money(sums.amount_nano, currency)
        name = words.others if model is None else model
        drawn.append(
            tag(
                "li",
                tag("h3", _model(model, words)),
                tag("p", tag("span", words.tokens, class_="soft"), tokens, class_="row"),
                share(sums.total_tokens, most_tokens, "in", f"{name}: {tokens} {words.tokens}"),
                tag("p", tag("span", words.cost, class_="soft"), cost, class_="row"),
                share(sums.amount_nano, most_cost, "cost", f"{name}: {cost}"),
            )
        )
    return drawn


def _model(model: str | None, words: Words) -> Html:
    return joined(words.others) if model is None else foreign(model)


def _table(first: str, rows: Sequence[tuple[Html, Sums]], currency: str, words: Words) -> Html:
    names = (first, words.requests, words.input, words.output, words.tokens, words.cost)
    body = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", number(sums.requests)),
            tag("td", number(sums.input_tokens)),
            tag("td", number(sums.output_tokens)),
            tag("td", number(sums.total_tokens)),
            tag("td", money(sums.amount_nano, currency)),
        )
        for name, sums in rows
    ]
    head = tag("tr", *[tag("th", name, scope="col") for name in names])
    table = tag("table", tag("thead", head), tag("tbody", *body))
    # What scrolls must be reached by the keyboard.
    return tag(
        "details",
        tag("summary", words.table),
        tag("div", table, class_="scroll", tabindex="0", role="region", aria_label=first),
    )
