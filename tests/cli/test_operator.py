"""The command, as an operator uses it from the first account to the nightly check."""

import asyncio
import csv
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from msgspec.structs import replace

from inf_middleware import BillingEvent, Usage
from inf_middleware.cli import main
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of
from tests.kit import reading


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


def run(uri: str, *words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [*words, "--ledger", uri])
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def told(uri: str, *words: str, code: int = 0) -> Any:
    return json.loads(run(uri, *words, "--json", code=code).stdout)


def settle(uri: str, *events: BillingEvent) -> None:
    async def go() -> None:
        ledger = SqliteLedger.from_uri(uri)
        for event in events:
            await ledger.settle(event)
        await ledger.aclose()

    asyncio.run(go())


def test_from_an_account_to_its_level(uri: str) -> None:
    made = told(uri, "account", "create", "acme")
    assert (made["account"], made["tier"], made["balance_nano"]) == ("acme", "Free", "0")
    issued = told(uri, "key", "issue", "acme", "--label", "laptop")
    assert issued["key"].startswith("sk-")
    recharged = told(uri, "recharge", "acme", "500", "--reference", "r1")
    assert {name: recharged[name] for name in _RECHARGE} == _RECHARGE
    shown = told(uri, "account", "show", "acme")
    assert (shown["tier"], shown["recharged_nano"], shown["balance"]) == (
        "Tier1",
        "500000000000",
        "500",
    )
    (listed,) = told(uri, "key", "list", "acme")
    assert listed["key_id"] == issued["key_id"]
    assert "key" not in listed
    assert told(uri, "key", "revoke", issued["key_id"])["revoked_at"] is not None


_RECHARGE = {
    "account": "acme",
    "kind": "recharge",
    "tier": "Tier1",
    "reference": "r1",
    "repeated": False,
    "amount_nano": "500000000000",
    "recharged_nano": "500000000000",
    "balance_nano": "500000000000",
}


def test_a_recharge_run_again_is_booked_once(uri: str) -> None:
    first = told(uri, "recharge", "acme", "500", "--reference", "r1")
    again = told(uri, "recharge", "acme", "500.00", "--reference", "r1")
    assert again["request_id"] == first["request_id"]
    assert again["repeated"] is True
    assert again["balance_nano"] == "500000000000"
    other = run(uri, "recharge", "acme", "5", "--reference", "r1", code=2)
    assert "stands for another recharge" in other.stderr


def test_every_movement_has_its_command(uri: str) -> None:
    bill = event_of(usage=Usage(1000, 0))
    settle(uri, bill)
    told(uri, "recharge", "acme", "500", "--reference", "r1")
    assert told(uri, "grant", "acme", "5", "--expires", "2999-01-01")["kind"] == "grant"
    assert told(uri, "credit", bill.id, "0.004")["corrects"] == bill.id
    assert told(uri, "withdraw", "acme", "1.5")["balance"] == "503.494"
    back = told(uri, "reverse", "r1")
    assert (back["operation"], back["tier"], back["balance"]) == ("reverse", "Free", "3.494")
    assert told(uri, "ledger", "reconcile")["ok"] is True


def test_an_account_is_set_suspended_and_listed(uri: str) -> None:
    told(uri, "account", "create", "acme", "--credit-limit", "10", "--metadata", '{"a": 1}')
    assert told(uri, "account", "set", "acme", "--tier", "tier3")["pinned_tier"] == "Tier3"
    assert told(uri, "account", "set", "acme", "--tier", "")["pinned_tier"] is None
    assert told(uri, "account", "suspend", "acme")["suspended"] is True
    assert told(uri, "account", "suspend", "acme", "--lift")["suspended"] is False
    (listed,) = told(uri, "account", "list")
    assert (listed["credit_limit_nano"], listed["metadata"]) == ("10000000000", {"a": 1})
    table = run(uri, "account", "list").stdout
    assert table.splitlines()[2].split() == [
        "acme", "Free", "active", "¥0.0000", "¥0.0000", "¥0.0000", "¥10.0000",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("recharge", "acme", "0.0000000001", "--reference", "r"), "the finest amount"),
        (("recharge", "acme", "many", "--reference", "r"), "write a decimal"),
        (("recharge", "acme", "0", "--reference", "r"), "is 0"),
        (("key", "issue", "nobody"), "there is no account 'nobody'"),
        (("account", "set", "nobody", "--suspended"), "there is no account 'nobody'"),
        (("account", "create", "a", "--tier", "Gold"), "there is no tier 'Gold'"),
        (("account", "create", "a", "--metadata", "[1]"), "write a JSON object"),
        (("key", "revoke", "0123"), "there is no key"),
        (("credit", "nothing"), "there is no request"),
        (("reverse", "nothing"), "there is no recharge"),
        (("usage", "--from", "yesterday"), "write a day"),
        (("usage", "--from", "0001-01-01T00:00:00+08:00"), "write a day"),
        (("statement", "acme", "--month", "11"), "write a month"),
        (("statement", "acme", "--month", "9999-12"), "write a month"),
        (("grant", "acme", "1", "--expires", "9999-12-31T23:59:59-05:00"), "write a day"),
        (("key", "list", "\udcff"), "'\\udcff' is no UTF-8"),  # as a shell passes another coding on
        (("account", "show", "acme"), "there is no ledger at"),
        (("ledger", "reconcile"), "there is no ledger at"),
        (("ledger", "migrate"), "there is no ledger at"),
        (("ledger", "export"), "there is no ledger at"),
    ],
)
def test_what_cannot_be_is_one_clear_line(words: tuple[str, ...], says: str, uri: str) -> None:
    result = run(uri, *words, code=2)
    assert says in result.stderr
    assert result.stderr.startswith("inf-middleware: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("uri", ["mysql://x", "ledger.db", "sqlite:///:memory:"])
def test_a_uri_that_names_no_ledger_is_one_clear_line(uri: str) -> None:
    assert "sqlite:///inf-ledger.db" in run(uri, "account", "list", code=2).stderr


def test_usage_by_day_model_and_key_less_what_was_credited(uri: str) -> None:
    bills = [
        event_of(1, usage=Usage(1000, 0)),
        event_of(2, usage=Usage(2000, 0), model="other", key_id="k2"),
        event_of(3, usage=Usage(3000, 0), settled_at="2026-11-25T20:00:00.000000Z"),
    ]
    settle(uri, *bills)
    told(uri, "credit", bills[1].id, "0.005")
    models = told(uri, "usage", "--by", "model")
    assert [(row["model"], row["requests"], row["amount"]) for row in models] == [
        ("inf-chat-v1", 2, "0.04"),
        ("other", 1, "0.015"),
    ]
    keys = told(uri, "usage", "--by", "key")
    assert [(row["key_id"], row["amount"]) for row in keys] == [("abc123", "0.04"), ("k2", "0.015")]
    days = told(uri, "usage", "--by", "day", "--by", "model", "--to", "2026-11-25")
    assert [(row["day"], row["model"]) for row in days] == [
        ("2026-11-24", "other"),
        ("2026-11-24", "inf-chat-v1"),
    ]
    assert "2026-11-25" in run(uri, "usage", "--by", "day").stdout
    assert told(uri, "usage", "--account", "nobody") == []


def test_days_are_those_of_the_time_zone_of_reports(uri: str, tmp_path: Path) -> None:
    settle(uri, event_of(1, settled_at="2026-11-24T18:00:00.000000Z"))
    config = tmp_path / "config.toml"
    config.write_text(f'[ledger]\nuri = "{uri}"\ntimezone = "Asia/Shanghai"\n')
    shown = CliRunner().invoke(main, ["usage", "--by", "day", "--json", "--config", str(config)])
    assert [row["day"] for row in json.loads(shown.stdout)] == ["2026-11-25"]
    env = {"INF_MIDDLEWARE_TIMEZONE": "America/New_York"}
    shown = CliRunner().invoke(
        main, ["usage", "--by", "day", "--json", "--config", str(config)], env=env
    )
    assert [row["day"] for row in json.loads(shown.stdout)] == ["2026-11-24"]


def test_a_statement_tells_the_days_of_its_month(uri: str, tmp_path: Path) -> None:
    at = datetime(2026, 10, 31, 18, tzinfo=UTC)

    async def go() -> None:
        ledger = SqliteLedger.from_uri(uri)
        async with LedgerBook(ledger, now_ns=lambda: int(at.timestamp()) * 10**9) as book:
            await book.recharge("acme", "5", reference="r1")

    asyncio.run(go())
    config = tmp_path / "config.toml"
    config.write_text(f'[ledger]\nuri = "{uri}"\ntimezone = "Asia/Shanghai"\n')
    asked = ["statement", "acme", "--month", "2026-11", "--config", str(config)]
    shown = CliRunner().invoke(main, asked).stdout
    assert [line.split()[0] for line in shown.splitlines() if "recharge r1" in line] == [
        "2026-11-01"
    ]


def test_a_statement_adds_up(uri: str) -> None:
    bill = event_of(usage=Usage(1000, 0))
    settle(uri, bill, event_of(1, settled_at="2026-10-31T23:59:59.999999Z", usage=Usage(500, 0)))
    october = told(uri, "statement", "acme", "--month", "2026-10")
    assert (october["opening"], october["closing"]) == ("0", "-0.005")
    told(uri, "recharge", "acme", "5", "--reference", "r1")
    told(uri, "credit", bill.id, "0.004")
    statement = told(uri, "statement", "acme", "--month", "2026-11")
    assert statement["opening"] == "-0.005"
    assert [row["amount"] for row in statement["usage"]] == ["0.01"]
    rest = told(uri, "statement", "acme")
    moved = {event["metadata"]["operation"] for event in statement["movements"]}
    moved |= {event["metadata"]["operation"] for event in rest["movements"]}
    assert moved == {"recharge", "credit"}
    assert rest["closing"] == "4.989"
    assert "balance after" in run(uri, "statement", "acme").stdout
    assert "there is no account" in run(uri, "statement", "nobody", code=2).stderr


def test_one_request_is_shown_in_full_for_a_dispute(uri: str) -> None:
    told(uri, "recharge", "acme", "1", "--reference", "r1")
    bill = event_of(usage=Usage(1000, 100))
    free = event_of(1, usage=Usage(0, 0))
    settle(uri, bill, free)
    credit = told(uri, "credit", bill.id, "0.002")

    async def deliver() -> None:
        ledger = SqliteLedger.from_uri(uri)
        await ledger.advance("mine", 2, {bill.id: "no such customer"})
        await ledger.advance("other", 3, {})
        await ledger.aclose()

    asyncio.run(deliver())
    shown = told(uri, "ledger", "show", bill.id)
    assert (shown["balance_before"], shown["balance_after"]) == ("1", "0.988")
    assert [event["request_id"] for event in shown["corrections"]] == [credit["request_id"]]
    assert shown["deliveries"] == {"mine": "refused: no such customer", "other": "delivered"}
    assert shown["lines"][0] == {
        "meter": "input_tokens",
        "quantity": 1000,
        "unit_price_nano": "10000",
        "amount_nano": "10000000",
    }
    text = run(uri, "ledger", "show", bill.id).stdout
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if line[:7] != "balance")
    assert lines.keys() >= {"key", "started", "settled", "basis", "price", "outcome", "corrected"}
    assert lines["input_tokens"] == "1,000 × 10,000 nano = ¥0.0100"
    assert "balance before  ¥1.0000\nbalance after   ¥0.988" in text
    assert "sink            mine: refused: no such customer\n" in text
    nothing = told(uri, "ledger", "show", free.id)
    assert nothing["balance_before"] == nothing["balance_after"] == "0.988"
    assert nothing["deliveries"] == {"mine": "waiting", "other": "delivered"}
    assert "there is no request" in run(uri, "ledger", "show", "x", code=2).stderr


def test_an_export_has_every_record_in_the_words_of_the_event(uri: str, tmp_path: Path) -> None:
    bills = [event_of(n, account=f"a{n % 2}") for n in range(5)]
    settle(uri, *bills)
    told(uri, "recharge", "a0", "5", "--reference", "r1")
    lines = run(uri, "ledger", "export").stdout.splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["request_id"] for event in events[:-1]] == [bill.id for bill in bills]
    assert set(events[0]) == set(BillingEvent.__struct_fields__) - {"source"}
    rows = list(csv.DictReader(io.StringIO(run(uri, "ledger", "export", "--format", "csv").stdout)))
    assert [row["amount_nano"] for row in rows] == [event["amount_nano"] for event in events]
    assert json.loads(rows[0]["lines"]) == events[0]["lines"]
    some = run(uri, "ledger", "export", "--account", "a1", "--to", "2026-11-25").stdout
    assert len(some.splitlines()) == 2
    target = tmp_path / "export.jsonl"
    done = told(uri, "ledger", "export", "--output", str(target))
    assert done == {"output": str(target), "lines": 6}
    assert target.read_text("utf-8").splitlines() == lines
    nowhere = run(uri, "ledger", "export", "--output", f"{tmp_path}/no/such/file", code=2)
    assert "cannot be written" in nowhere.stderr


# As they come in: a bill that was kept in a spool is recorded after later ones.
_DAYS = [3, 1, 2, 2, 5, 1, 3, 4]


@pytest.mark.parametrize("days", [(1, 6), (1, 2), (2, 4), (5, 6), (6, 9), (4, None), (None, 3)])
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_export_of_some_days_has_their_events_in_the_order_of_their_places(
    form: str, days: tuple[int | None, int | None], uri: str
) -> None:
    moments = [f"2026-11-{day:02d}T12:00:00.000000Z" for day in _DAYS]
    bills = [replace(event_of(n), settled_at=at) for n, at in enumerate(moments)]
    settle(uri, *bills)
    start, end = days
    words = ["--from", f"2026-11-{start:02d}"] if start else []
    words += ["--to", f"2026-11-{end:02d}"] if end else []
    told = run(uri, "ledger", "export", "--format", form, *words).stdout
    rows: list[Any] = [*csv.DictReader(io.StringIO(told))]
    if form == "jsonl":
        rows = [json.loads(line) for line in told.splitlines()]
    wanted = [
        bill.id for bill, day in zip(bills, _DAYS, strict=True) if (start or 0) <= day < (end or 99)
    ]
    assert [row["request_id"] for row in rows] == wanted


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_no_cell_of_an_export_is_a_formula(sign: str, uri: str) -> None:
    settle(uri, event_of(model=f"{sign}HYPERLINK(0)", idempotency_key=f"{sign}1"))
    shown = run(uri, "ledger", "export", "--format", "csv").stdout
    (row,) = csv.DictReader(io.StringIO(shown, newline=""))
    assert (row["model"], row["idempotency_key"]) == (f"'{sign}HYPERLINK(0)", f"'{sign}1")
    assert row["amount_nano"].isdigit()
    (line,) = run(uri, "ledger", "export").stdout.splitlines()
    assert json.loads(line)["model"] == f"{sign}HYPERLINK(0)"


@pytest.mark.parametrize(
    ("harm", "check"),
    [
        ("UPDATE balance SET balance_nano = balance_nano + 1", "balances are the sums"),
        ("UPDATE balance SET recharged_nano = 7", "recharges, which decide the level"),
        ("DELETE FROM event WHERE seq = 1", "each record has one event"),
        ("DROP TRIGGER transfer_is_not_deleted; DELETE FROM transfer WHERE seq = 1", "one posting"),
        (
            (
                "DROP TRIGGER transfer_is_not_changed; UPDATE transfer SET credit = 'account:x'"
                " WHERE seq = 1"
            ),
            "two sides",
        ),
        (
            "DROP TRIGGER request_is_not_changed; UPDATE request SET amount_nano = 1 WHERE seq = 1",
            "each event tells what its record does",
        ),
        ("INSERT INTO sink_cursor VALUES ('mine', 99)", "ahead of the ledger"),
        ("INSERT INTO dead_letter VALUES ('mine', 'x', 'no')", "what a sink refused"),
        ("INSERT INTO event VALUES (99, x'7b7d')", "each record has one event"),
        ("INSERT INTO transfer VALUES (99, 'account:acme', 'a', 5, 'CNY')", "one posting"),
        (
            (
                "DROP TRIGGER transfer_is_not_changed;"
                " UPDATE transfer SET amount_nano = 5 WHERE seq = 1"
            ),
            "one posting",
        ),
        (
            (
                "DROP TRIGGER transfer_is_not_changed;"
                " UPDATE transfer SET currency = 'USD' WHERE seq = 1"
            ),
            "one posting",
        ),
        (
            (
                "DROP TRIGGER event_is_not_changed; UPDATE event SET body = CAST(replace("
                'CAST(body AS TEXT), \'"amount_nano":"\', \'"amount_nano":"9\') AS BLOB)'
                " WHERE seq = 1"
            ),
            "each event tells what its record does",
        ),
        ("UPDATE balance SET held_nano = 5", "what is held"),
        (
            (
                "INSERT INTO hold VALUES ('x', 'acme', 'CNY', 5, 0, 'nobody', x'');"
                " UPDATE balance SET held_nano = 5"
            ),
            "each of a process that is known",
        ),
        (
            (
                "INSERT INTO process VALUES ('p', 0); INSERT INTO hold SELECT request_id, account,"
                " currency, 5, 0, 'p', x'' FROM request WHERE seq = 1;"
                " UPDATE balance SET held_nano = 5"
            ),
            "what is held",
        ),
        (
            (
                "DROP TRIGGER request_is_not_changed;"
                " UPDATE request SET corrects = 'x' WHERE kind = 'correction'"
            ),
            "each correction names a record",
        ),
        (
            (
                "DROP TRIGGER request_is_not_changed;"
                " UPDATE request SET amount_nano = 10 WHERE kind = 'correction'"
            ),
            "one posting",
        ),
    ],
)
def test_reconcile_finds_what_was_tampered_with(
    harm: str, check: str, uri: str, tmp_path: Path
) -> None:
    bill = event_of()
    settle(uri, bill)
    told(uri, "recharge", "acme", "5", "--reference", "r1")
    told(uri, "credit", bill.id)
    assert told(uri, "ledger", "reconcile")["ok"] is True
    with reading(tmp_path / "ledger.db") as db:
        db.execute(harm)
    found = told(uri, "ledger", "reconcile", code=1)
    assert found["ok"] is False
    wrong = [c["check"] for c in found["checks"] if not c["ok"]]
    assert any(check in name for name in wrong), wrong
    assert "WRONG" in run(uri, "ledger", "reconcile", code=1).stdout


def test_reconcile_names_a_sink_that_is_behind_by_more_than_a_day(uri: str, tmp_path: Path) -> None:
    settle(uri, event_of(1, settled_at="2026-01-01T00:00:00.000000Z"))
    told(uri, "recharge", "acme", "5", "--reference", "r1")  # of this moment: that may wait
    with reading(tmp_path / "ledger.db") as db:
        db.execute("INSERT INTO sink_cursor VALUES ('mine', 0), ('other', 1)")
    found = told(uri, "ledger", "reconcile", code=1)
    (wrong,) = [check for check in found["checks"] if not check["ok"]]
    assert wrong["differences"] == [
        "mine: 1 events wait, the oldest of 2026-01-01T00:00:00.000000Z"
    ]
    assert told(uri, "ledger", "reconcile", "--retired", "mine")["ok"] is True
    assert found["sinks"]["other"] == {"waiting": 1, "dead_letters": 0}


def test_reconcile_explains_every_nano_by_what_came_and_what_went(uri: str) -> None:
    settle(uri, event_of(usage=Usage(1000, 0)))
    told(uri, "recharge", "acme", "5", "--reference", "r1")
    told(uri, "grant", "acme", "2")
    sums = told(uri, "ledger", "reconcile")["currencies"]["CNY"]
    assert sums == {
        "cash:recharge": "-5000000000",
        "expense:grant": "-2000000000",
        "revenue:usage": "10000000",
        "balance_nano": "6990000000",
        "held_nano": "0",
    }
    sums.pop("held_nano")
    assert sum(map(int, sums.values())) == 0


def test_an_old_file_is_migrated_when_asked(uri: str, tmp_path: Path) -> None:
    from tests.ledgers.test_migration import old_ledger

    old_ledger(tmp_path / "ledger.db")
    assert "ledger migrate" in run(uri, "account", "list", code=2).stderr
    assert told(uri, "ledger", "migrate")["from_version"] == 1
    assert "already" in run(uri, "ledger", "migrate").stdout
    assert [a["account"] for a in told(uri, "account", "list")] == ["acme", "beta"]


def test_the_tables_in_force_are_shown(uri: str) -> None:
    levels = told(uri, "tiers")
    assert levels[1] == {
        "tier": "Tier1",
        "recharged_from": "500",
        "concurrency": 4,
        "requests_per_minute": 20,
        "tokens_per_minute": 128_000,
        "requests": [],
        "tokens": [],
    }
    prices = told(uri, "prices")
    assert prices["currency"] == "CNY"
    assert {price["model"]: price["input"] for price in prices["prices"]} == {
        "inf-chat-v1": "10",
        "inf-chat-fin-v1": "20",
        "inf-med-chat-v1": "20",
        "inf-chat-int-v1": "20",
    }
    assert "inf-chat-v1" in run(uri, "prices").stdout
    assert "Tier5" in run(uri, "tiers").stdout


def test_a_config_file_names_ledger_levels_and_prices(tmp_path: Path) -> None:
    (tmp_path / "tiers.toml").write_text(
        '[[tier]]\nname = "Only"\nconcurrency = 1\nrequests_per_minute = 1\n'
        "tokens_per_minute = 10\n"
    )
    config = tmp_path / "c.toml"
    config.write_text(
        f'[ledger]\nuri = "sqlite:///{tmp_path}/l.db"\n[tiers]\nfile = "tiers.toml"\n'
    )
    made = CliRunner().invoke(
        main, ["account", "create", "acme", "--json", "--config", str(config)]
    )
    assert json.loads(made.stdout)["tier"] == "Only"
    assert (tmp_path / "l.db").exists()
    config.write_text("[ledger]\nuri = 3\n")
    wrong = CliRunner().invoke(main, ["account", "list", "--config", str(config)])
    assert (wrong.exit_code, f"{config}, line 2, [ledger]: ledger is 3" in wrong.stderr) == (
        2,
        True,
    )
