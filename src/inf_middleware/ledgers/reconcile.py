"""Reconciliation: every nano explained, from the postings up."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.moments import rfc3339
from inf_middleware.ledgers.reports import lines_amount
from inf_middleware.ledgers.steps import Ask, Steps

# Differences shown of one check; how many there are is always told.
DIFFERENCES_MAX = 20

# Events read at a time.
PAGE = 2_000


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold: `count` differences, of which the first are shown."""

    check: str
    ok: bool
    count: int
    differences: tuple[str, ...]


# Each returns what is not as it should be: a name, and what was found.
_CHECKS: tuple[tuple[str, str], ...] = (
    (
        "each record above 0 has one posting of its amount, and no other has one",
        (
            "SELECT request.request_id, 'record ' || CAST(request.amount_nano AS TEXT) || ' '"
            "  || request.currency || ', posting ' || CAST(posting.amount_nano AS TEXT) || ' '"
            "  || posting.currency"
            " FROM request JOIN posting ON posting.request_id = request.request_id"
            " WHERE request.amount_nano <> posting.amount_nano"
            "  OR request.currency <> posting.currency UNION ALL"
            " SELECT request_id, 'record ' || CAST(amount_nano AS TEXT) || ', no posting'"
            " FROM request WHERE amount_nano > 0 AND NOT EXISTS"
            "  (SELECT 1 FROM posting WHERE posting.request_id = request.request_id) UNION ALL"
            " SELECT coalesce(request_id, 'place ' || CAST(seq AS TEXT)),"
            "  'no record, posting ' || CAST(amount_nano AS TEXT)"
            " FROM posting WHERE NOT EXISTS"
            "  (SELECT 1 FROM request WHERE request.request_id = posting.request_id)"
        ),
    ),
    (
        "debits equal credits: each posting has two sides, of which one is an account's",
        (
            "SELECT coalesce(request_id, 'place ' || CAST(seq AS TEXT)),"
            " debit || ' to ' || credit FROM posting"
            " WHERE (debit LIKE 'account:%') = (credit LIKE 'account:%')"
        ),
    ),
    (
        "balances are the sums of the postings",
        (
            "WITH side AS (SELECT substr(debit, 9) AS account, currency, -amount_nano AS moved"
            "  FROM posting WHERE debit LIKE 'account:%' UNION ALL"
            "  SELECT substr(credit, 9), currency, amount_nano FROM posting"
            "  WHERE credit LIKE 'account:%'),"
            " posted AS (SELECT account, currency, CAST(sum(moved) AS BIGINT) AS total FROM side"
            "  GROUP BY account, currency)"
            " SELECT coalesce(balance.account, posted.account), 'balance '"
            "  || coalesce(CAST(balance.balance_nano AS TEXT), 'none') || ', postings '"
            "  || coalesce(CAST(posted.total AS TEXT), 'none')"
            " FROM balance FULL JOIN posted ON posted.account = balance.account"
            "  AND posted.currency = balance.currency"
            " WHERE coalesce(balance.balance_nano, 0) <> coalesce(posted.total, 0)"
        ),
    ),
    (
        "what is held is the sum of the open holds, each of a process that is known",
        (
            "SELECT balance.account, 'held ' || CAST(balance.held_nano AS TEXT) || ', holds '"
            "  || CAST(coalesce(held.total, 0) AS TEXT)"
            " FROM balance LEFT JOIN (SELECT account, currency, CAST(sum(amount_nano) AS BIGINT)"
            "   AS total FROM hold GROUP BY account, currency) held"
            "  ON held.account = balance.account AND held.currency = balance.currency"
            " WHERE balance.held_nano <> coalesce(held.total, 0)"
            " UNION ALL SELECT hold.request_id, 'no process ' || hold.owner FROM hold"
            "  LEFT JOIN process ON process.id = hold.owner WHERE process.id IS NULL"
            " UNION ALL SELECT hold.request_id, 'settled, and still held' FROM hold"
            "  JOIN request ON request.request_id = hold.request_id"
        ),
    ),
    (
        "recharges, which decide the level, are the sums of the recharge postings",
        (
            "WITH side AS (SELECT substr(debit, 9) AS account, currency, -amount_nano AS moved"
            "  FROM posting WHERE credit = 'cash:recharge' UNION ALL"
            "  SELECT substr(credit, 9), currency, amount_nano FROM posting"
            "  WHERE debit = 'cash:recharge'),"
            " posted AS (SELECT account, currency, CAST(sum(moved) AS BIGINT) AS total FROM side"
            "  GROUP BY account, currency)"
            " SELECT balance.account, 'recharged ' || CAST(balance.recharged_nano AS TEXT)"
            "  || ', postings ' || CAST(coalesce(posted.total, 0) AS TEXT)"
            " FROM balance LEFT JOIN posted ON posted.account = balance.account"
            "  AND posted.currency = balance.currency"
            " WHERE balance.recharged_nano <> coalesce(posted.total, 0)"
        ),
    ),
    (
        "no correction takes back more than there was",
        (
            "SELECT corrected.request_id, CAST(corrected.amount_nano AS TEXT) || ', taken back '"
            "  || CAST(sum(correction.amount_nano) AS TEXT)"
            " FROM request correction JOIN request corrected"
            "  ON corrected.request_id = correction.corrects WHERE correction.kind = 'correction'"
            " GROUP BY corrected.request_id, corrected.amount_nano"
            " HAVING sum(correction.amount_nano) > corrected.amount_nano"
        ),
    ),
    (
        "each correction names a record of its account",
        (
            "SELECT correction.request_id, 'corrects ' || coalesce(correction.corrects, 'nothing')"
            " FROM request correction LEFT JOIN request corrected"
            "  ON corrected.request_id = correction.corrects"
            "  AND corrected.account = correction.account"
            " WHERE correction.kind = 'correction' AND corrected.request_id IS NULL"
        ),
    ),
    (
        "each record has one event, and each event a record",
        (
            "SELECT request_id, 'no event' FROM request WHERE NOT EXISTS"
            "  (SELECT 1 FROM outbox WHERE outbox.id = request.request_id) UNION ALL"
            " SELECT coalesce(id, 'place ' || CAST(seq AS TEXT)), 'no record' FROM outbox"
            " WHERE NOT EXISTS (SELECT 1 FROM request WHERE request.request_id = outbox.id)"
        ),
    ),
    (
        "no sink is ahead of the ledger",
        (
            "SELECT sink, 'at ' || CAST(seq AS TEXT) FROM sink_cursor"
            " WHERE seq > (SELECT coalesce(max(seq), 0) FROM outbox)"
        ),
    ),
    (
        "what a sink refused is an event of this ledger",
        (
            "SELECT sink, id FROM dead_letter WHERE NOT EXISTS"
            " (SELECT 1 FROM outbox WHERE outbox.id = dead_letter.id)"
        ),
    ),
)


# A sink may be down for an evening; one that is behind for longer is for people to look at.
SINK_BEHIND = timedelta(days=1)


def checks(now: datetime | None = None, retired: Collection[str] = ()) -> Steps[list[Check]]:
    """Check all that statements can check.

    `now` is an aware moment, that of the call by default; `retired` are sinks that nobody delivers
    to any more.
    """
    found = []
    for name, sql in _CHECKS:
        rows = yield Ask(sql)
        found.append(check_of(name, [f"{what}: {how}" for what, how in rows]))
    found.append((yield from _check_sinks((now or datetime.now(UTC)) - SINK_BEHIND, retired)))
    return found


def _check_sinks(before: datetime, retired: Collection[str]) -> Steps[Check]:
    rows = yield Ask(
        "SELECT sink_cursor.sink, count(*), min(request.settled_at) FROM sink_cursor"
        " JOIN outbox ON outbox.seq > sink_cursor.seq"
        " JOIN request ON request.request_id = outbox.id WHERE request.settled_at < ?"
        " GROUP BY sink_cursor.sink ORDER BY sink_cursor.sink",
        (rfc3339(int(before.timestamp()) * 10**9),),
    )
    behind = [
        f"{sink}: {count:,} events wait, the oldest of {oldest}"
        for sink, count, oldest in rows
        if sink not in retired
    ]
    return check_of("no sink is behind by more than a day", behind)


def check_events(after: int) -> Steps[tuple[int | None, list[str]]]:
    """Check a page of events against their records; return where the next begins, if any."""
    rows = yield Ask(
        "SELECT outbox.seq, outbox.body, request.account, request.kind, request.amount_nano,"
        " request.currency FROM outbox JOIN request ON request.request_id = outbox.id"
        f" WHERE outbox.seq > ? ORDER BY outbox.seq LIMIT {PAGE}",
        (after,),
    )
    wrong = []
    for _, body, account, kind, amount, currency in rows:
        event = BillingEvent.decode(bytes(body))
        told = (event.account, event.kind, int(event.amount_nano), event.currency)
        if told != (account, kind, amount, currency):
            wrong.append(f"{event.id}: record and event differ")
        elif kind == "usage" and lines_amount(event) != amount:
            wrong.append(f"{event.id}: its lines add up to {lines_amount(event)}, not {amount}")
    return (rows[-1][0] if len(rows) == PAGE else None), wrong


EVENTS_CHECK = "each event tells what its record does, and its lines add up"


def events_check(wrong: list[str]) -> Check:
    """Return the check that all pages of events make up."""
    return check_of(EVENTS_CHECK, wrong)


def totals() -> Steps[dict[str, Any]]:
    """Sum up what came, what went, and what sinks have; in nano units."""
    sides = yield Ask(
        "SELECT currency, house, CAST(sum(moved) AS BIGINT) FROM"
        " (SELECT currency, debit AS house, -amount_nano AS moved FROM posting"
        "  WHERE debit NOT LIKE 'account:%' UNION ALL"
        "  SELECT currency, credit, amount_nano FROM posting WHERE credit NOT LIKE 'account:%')"
        " sides GROUP BY currency, house ORDER BY currency, house"
    )
    balances = yield Ask(
        "SELECT currency, CAST(sum(balance_nano) AS BIGINT), CAST(sum(held_nano) AS BIGINT)"
        " FROM balance GROUP BY currency ORDER BY currency"
    )
    counts = yield Ask(
        "SELECT (SELECT count(*) FROM request), (SELECT count(*) FROM posting),"
        " (SELECT count(*) FROM outbox)"
    )
    sinks = yield Ask(
        "SELECT sink, (SELECT count(*) FROM outbox WHERE outbox.seq > sink_cursor.seq),"
        " (SELECT count(*) FROM dead_letter WHERE dead_letter.sink = sink_cursor.sink)"
        " FROM sink_cursor ORDER BY sink"
    )
    per_currency: dict[str, dict[str, str]] = {}
    for currency, house, moved in sides:
        per_currency.setdefault(currency, {})[house] = str(moved)
    for currency, balance, held in balances:
        told = per_currency.setdefault(currency, {})
        told["balance_nano"], told["held_nano"] = str(balance), str(held)
    return {
        "records": counts[0][0],
        "postings": counts[0][1],
        "events": counts[0][2],
        "currencies": per_currency,
        "sinks": {
            sink: {"waiting": waiting, "dead_letters": dead} for sink, waiting, dead in sinks
        },
    }


def check_of(name: str, differences: list[str], count: int | None = None) -> Check:
    """Return a check by its differences, or the first of `count`."""
    count = len(differences) if count is None else count
    return Check(name, not count, count, tuple(differences[:DIFFERENCES_MAX]))
