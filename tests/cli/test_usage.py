"""`inf-middleware usage`, as an operator sees it."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from inf_middleware import BillingEvent, Usage
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.events import event_of


def usage(*options: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("inf-middleware")), "usage", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def ledger_of(path: Path, events: list[BillingEvent]) -> None:
    async def go() -> None:
        ledger = SqliteLedger(path)
        await asyncio.gather(*(ledger.settle(event) for event in events))
        await ledger.aclose()

    asyncio.run(go())


def test_the_table_has_a_row_per_account_and_a_total(tmp_path: Path) -> None:
    events = [event_of(n, usage=Usage(1_000, 100)) for n in range(3)]
    other: dict[str, Any] = {"account": "银行", "tier": "Free", "usage": Usage(50, 5)}
    events.append(event_of(3, **other, settled_at="2026-11-24T00:00:00.000000Z"))
    ledger_of(tmp_path / "inf-ledger.db", events)
    shown = usage(cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout == (
        "account  tier   requests  input  output  tokens     cost\n"
        "-------  -----  --------  -----  ------  ------  -------\n"
        "acme     Tier1         3  3,000     300   3,300  ¥0.0360\n"
        "银行     Free          1     50       5      55  ¥0.0006\n"
        "-------  -----  --------  -----  ------  ------  -------\n"
        "TOTAL                  4  3,050     305   3,355  ¥0.0366\n"
    )


def test_json_has_the_words_of_the_design(tmp_path: Path) -> None:
    ledger_of(tmp_path / "l.db", [event_of(0, usage=Usage(1_000, 100), unpriced=True)])
    shown = usage("--json", "--ledger", f"sqlite:///{tmp_path}/l.db", cwd=tmp_path)
    assert json.loads(shown.stdout) == [
        {
            "account": "acme",
            "tier": "Tier1",
            "requests": 1,
            "input_tokens": 1_000,
            "output_tokens": 100,
            "total_tokens": 1_100,
            "amount_nano": "12000000",
            "amount": "0.012",
            "currency": "CNY",
            "unpriced_requests": 1,
        }
    ]


def test_unpriced_requests_are_marked(tmp_path: Path) -> None:
    ledger_of(tmp_path / "inf-ledger.db", [event_of(0, unpriced=True)])
    shown = usage(cwd=tmp_path).stdout
    assert "acme*" in shown
    assert "1 of these requests had no price" in shown


def test_what_a_terminal_might_obey_is_shown_as_escapes(tmp_path: Path) -> None:
    ledger_of(tmp_path / "inf-ledger.db", [event_of(0, account="evil\x1b[2J\nroot")])
    shown = usage(cwd=tmp_path).stdout
    assert "evil\\x1b[2J\\nroot" in shown
    assert "\x1b" not in shown


def test_an_empty_ledger_says_so(tmp_path: Path) -> None:
    path = tmp_path / "inf-ledger.db"

    async def touch() -> None:
        ledger = SqliteLedger(path)
        await ledger.elect("mine")
        await ledger.aclose()

    asyncio.run(touch())
    assert "no request has been recorded yet" in usage(cwd=tmp_path).stdout
    assert json.loads(usage("--json", cwd=tmp_path).stdout) == []


def test_a_ledger_that_is_not_there_is_one_clear_line_and_no_file(tmp_path: Path) -> None:
    shown = usage(cwd=tmp_path)
    assert shown.returncode == 2
    assert shown.stderr == f"inf-middleware: there is no ledger at {tmp_path}/inf-ledger.db\n"
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_ledger_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("nothing of the kind, but long enough to be a file" * 50)
    for uri in ("sqlite:///x.db", "mysql://x"):
        shown = usage("--ledger", uri, cwd=tmp_path)
        assert shown.returncode == 2
        assert len(shown.stderr.splitlines()) == 1
        assert "Traceback" not in shown.stderr


def test_it_reads_while_a_server_writes(tmp_path: Path) -> None:
    path = tmp_path / "inf-ledger.db"

    async def go() -> str:
        ledger = SqliteLedger(path)
        await ledger.settle(event_of(0))
        shown = await asyncio.to_thread(usage, cwd=tmp_path)
        await ledger.settle(event_of(1))
        await ledger.aclose()
        return shown.stdout

    assert "acme" in asyncio.run(go())
