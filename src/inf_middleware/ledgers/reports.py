"""What the ledger tells the operator of usage, by account, day, model and key."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any, Literal, TypeAlias

import msgspec

from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.moments import day_of
from inf_middleware.ledgers.steps import Ask, Steps

By: TypeAlias = Literal["account", "day", "model", "key"]

_COLUMNS: dict[By, str] = {
    "account": "account",
    "day": "substr(settled_at, 1, 10)",
    "model": "model",
    "key": "key_id",
}

# Calls, and the credits of their bills; a credit counts on the day it was given.
_CHARGES = (
    "(SELECT account, model, key_id, settled_at, currency, 1 AS calls, input_tokens,"
    "  output_tokens, amount_nano, unpriced FROM {records} WHERE kind = 'usage'"
    " UNION ALL"
    " SELECT credit.account, bill.model, bill.key_id, credit.settled_at, credit.currency, 0, 0,"
    "  0, -credit.amount_nano, 0 FROM {records} credit"
    "  JOIN request bill ON bill.request_id = credit.corrects"
    "  WHERE credit.kind = 'correction' AND bill.kind = 'usage') charges"
)


@dataclass(frozen=True, slots=True)
class UsageRow:
    """Sums over calls; what they are sums of is None where it was not asked for.

    `amount_nano` is less what was credited. `tier` is the account's latest.
    """

    account: str | None
    day: str | None
    model: str | None
    key_id: str | None
    tier: str | None
    requests: int
    input_tokens: int
    output_tokens: int
    amount_nano: int
    currency: str
    unpriced_requests: int


@dataclass(frozen=True, slots=True)
class Period:
    """From a moment on, and up to but without another; as records write moments."""

    start: str | None = None
    end: str | None = None


def usage(
    by: Sequence[By], *, account: str | None, period: Period, zone: tzinfo = UTC
) -> Steps[list[UsageRow]]:
    """Sum up calls by what `by` names and by currency, dearest first, days in order."""
    columns = [_COLUMNS[name] for name in by]
    if "day" in by and zone is not UTC:
        # No time zone cuts a minute: minutes are summed up here, and days made of them below.
        columns[list(by).index("day")] = "substr(settled_at, 1, 16)"
    grouped = ", ".join([*columns, "currency"])
    where, params = where_of(account, period)
    charges = _CHARGES.format(records=_records_of(account, period))
    rows = yield Ask(
        f"SELECT {grouped}, CAST(sum(calls) AS BIGINT), CAST(sum(input_tokens) AS BIGINT),"
        " CAST(sum(output_tokens) AS BIGINT), CAST(sum(amount_nano) AS BIGINT),"
        f" CAST(sum(unpriced) AS BIGINT) FROM {charges}{where} GROUP BY {grouped}",
        params,
    )
    summed: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        key = list(row[: len(by) + 1])
        if "day" in by and zone is not UTC:
            place = list(by).index("day")
            key[place] = day_of(f"{key[place]}:00Z", zone)
        sums = summed.setdefault(tuple(key), [0] * 5)
        for number, value in enumerate(row[len(by) + 1 :]):
            sums[number] += value
    tiers = (yield from _latest_tiers(summed, by)) if by == ["account"] else {}
    found = []
    for key_values, (calls, inputs, outputs, amount, unpriced) in summed.items():
        named = dict(zip(by, key_values, strict=False))
        found.append(
            UsageRow(
                account=named.get("account"),
                day=named.get("day"),
                model=named.get("model"),
                key_id=named.get("key"),
                tier=tiers.get(str(named.get("account"))),
                requests=calls,
                input_tokens=inputs,
                output_tokens=outputs,
                amount_nano=amount,
                currency=str(key_values[-1]),
                unpriced_requests=unpriced,
            )
        )
    names = [tuple(getattr(row, _FIELDS[name]) or "" for name in by) for row in found]
    order = sorted(
        range(len(found)),
        key=lambda n: (found[n].day or "", -found[n].amount_nano, names[n]),
    )
    return [found[n] for n in order]


_FIELDS: dict[By, str] = {"account": "account", "day": "day", "model": "model", "key": "key_id"}


def _latest_tiers(
    summed: dict[tuple[Any, ...], list[int]], by: Sequence[By]
) -> Steps[dict[str, str]]:
    tiers = {}
    for account in {str(key[list(by).index("account")]) for key in summed}:
        rows = yield Ask(
            "SELECT tier, settled_at, seq FROM request_by_account WHERE account = ?"
            " ORDER BY settled_at DESC, seq DESC LIMIT 1",
            (account,),
        )
        tiers[account] = rows[0][0]
    return tiers


def _records_of(account: str | None, period: Period) -> str:
    if account is not None:
        return "request_by_account"
    return "request" if period == Period() else "request_by_time"


def where_of(
    account: str | None, period: Period, keyword: str = "WHERE"
) -> tuple[str, tuple[str, ...]]:
    """Return the condition on records of an account and a period, and what it is given."""
    conditions = [
        (condition, value)
        for condition, value in (
            ("account = ?", account),
            ("settled_at >= ?", period.start),
            ("settled_at < ?", period.end),
        )
        if value is not None
    ]
    if not conditions:
        return "", ()
    text = " AND ".join(condition for condition, _ in conditions)
    return f" {keyword} {text}", tuple(value for _, value in conditions)


def lines_amount(event: BillingEvent) -> int:
    """Return what an event's lines add up to."""
    return sum(line.quantity * int(line.unit_price_nano) for line in event.lines)


def flat(event: BillingEvent) -> dict[str, Any]:
    """Return an event's data as the export shows it."""
    data: dict[str, Any] = msgspec.to_builtins(event)
    del data["source"]
    return data
