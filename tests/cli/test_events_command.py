"""`inf-middleware events`, as an operator sees it, and what the relay makes of it."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import BillingEvent
from inf_middleware.ledgers.connection import connect
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ports import Rejected, TryLater
from tests.events import event_of
from tests.kit import reading
from tests.ledgers.test_migration import old_ledger
from tests.sinks.kit import DRAIN_S, Taking, dead_letters, relaying, until


def events(*options: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("inf-middleware")), "events", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def told(*options: str, cwd: Path) -> Any:
    shown = events(*options, "--json", cwd=cwd)
    assert shown.returncode == 0, shown.stderr
    return json.loads(shown.stdout)


HOURS = [
    event_of(number, settled_at=f"2026-11-24T{number:02}:30:00.000000Z", account=f"a{number % 2}")
    for number in range(6)
]
IDS = [event.id for event in HOURS]


def delivered(path: Path, sink: Any, stored: Sequence[BillingEvent], name: str = "mine") -> None:
    """Let a server deliver what its ledger holds, `stored` included."""

    async def go() -> None:
        ledger = SqliteLedger(path)
        for event in stored:
            await ledger.settle(event)
        await ledger.aclose()
        async with relaying(path, {name: sink}) as (_, relay):
            await relay.drain(DRAIN_S)
            await until(lambda: not rows(path, "SELECT * FROM replay"))

    asyncio.run(go())


def rows(path: Path, query: str) -> list[Any]:
    with reading(path) as db:
        return db.execute(query).fetchall()


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A ledger whose sink "mine" has taken all but the second event, which it has refused."""
    path = tmp_path / "inf-ledger.db"
    delivered(path, Taking(Rejected({IDS[1]: "no such\ncustomer"})), HOURS)
    return path


def test_status_shows_what_waits_and_how_old_it_is(ledger: Path) -> None:
    async def more() -> None:
        async with relaying(ledger, {"down": Taking(*[OSError()] * 10_000)}):
            await until(lambda: len(rows(ledger, "SELECT * FROM sink_cursor")) == 2)

    asyncio.run(more())
    down, mine = told("status", cwd=ledger.parent)
    assert down["oldest_pending_age_s"] is not None
    assert {**down, "oldest_pending_age_s": None} == {
        "sink": "down",
        "delivered": 0,
        "pending": 6,
        "oldest_pending_at": HOURS[0].settled_at,
        "oldest_pending_age_s": None,
        "dead_letters": 0,
        "replaying": 0,
        "in_doubt_since": None,
    }
    assert (mine["delivered"], mine["pending"], mine["dead_letters"]) == (6, 0, 1)
    shown = events("status", cwd=ledger.parent).stdout
    assert re.search(r"^down +0 +6 .* 0 +0$", shown, re.MULTILINE)
    assert re.search(r"^mine +6 +0 +1 +0$", shown, re.MULTILINE)


def test_dead_letters_are_listed_with_their_reason(ledger: Path) -> None:
    assert told("dead-letters", cwd=ledger.parent) == [
        {
            "sink": "mine",
            "request_id": IDS[1],
            "account": "a1",
            "settled_at": HOURS[1].settled_at,
            "amount_nano": HOURS[1].amount_nano,
            "currency": "CNY",
            "reason": "no such\ncustomer",
        }
    ]
    shown = events("dead-letters", "--sink", "mine", cwd=ledger.parent).stdout
    assert shown == f"{HOURS[1].settled_at}  mine  {IDS[1]}  a1  no such\\ncustomer\n"


def replayed(ledger: Path, *options: str) -> tuple[int, list[str]]:
    """Ask for a replay, and return how many are said, and what is sent."""
    count = told("replay", "--sink", "mine", *options, cwd=ledger.parent)["replayed"]
    sink = Taking()
    delivered(ledger, sink, [])
    stored = {event.id: event.encode() for event in HOURS}
    assert all(event.encode() == stored[event.id] for event in sink.taken)
    return count, [event.id for event in sink.taken]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--id", IDS[3]], IDS[3:4]),
        (["--id", IDS[4], "--id", IDS[0], "--id", IDS[4], "--id", IDS[1]], [*IDS[:2], IDS[4]]),
        (["--since", "2026-11-24T02:30:00Z"], IDS[2:]),
        (["--until", "2026-11-24T02:30:00Z"], IDS[:2]),
        (["--since", "2026-11-24T10:30:00+08:00", "--until", "2026-11-24T04:00:00"], IDS[2:4]),
        (["--since", "2026-11-24", "--until", "2026-11-25"], IDS),
        (["--dead-letters"], IDS[1:2]),
    ],
    ids=str,
)
def test_replay_sends_just_what_was_asked_for_once_more_in_order(
    ledger: Path, options: list[str], expected: list[str]
) -> None:
    assert replayed(ledger, *options) == (len(expected), expected)
    # And only once.
    sink = Taking()
    delivered(ledger, sink, [])
    assert sink.taken == []


def test_times_are_those_of_the_events_whatever_the_order_of_their_commits(
    tmp_path: Path,
) -> None:
    path = tmp_path / "inf-ledger.db"
    delivered(path, Taking(), [HOURS[n] for n in (3, 0, 4, 1, 5, 2)])
    options = ["--since", "2026-11-24T01:00:00Z", "--until", "2026-11-24T04:00:00Z"]
    assert replayed(path, *options) == (3, [IDS[3], IDS[1], IDS[2]])


def test_what_is_taken_at_last_is_no_dead_letter_any_more(ledger: Path) -> None:
    replayed(ledger, "--dead-letters")
    assert dead_letters(ledger) == []
    assert events("dead-letters", cwd=ledger.parent).stdout == "No dead letters.\n"


def test_what_is_refused_again_stays_a_dead_letter_with_the_new_reason(ledger: Path) -> None:
    told("replay", "--sink", "mine", "--id", IDS[1], "--id", IDS[2], cwd=ledger.parent)
    delivered(ledger, Taking(Rejected({IDS[1]: "still none"})), [])
    assert dead_letters(ledger) == [("mine", IDS[1], "still none")]


def test_a_replay_survives_a_sink_that_is_down_and_a_restart(ledger: Path) -> None:
    told("replay", "--sink", "mine", "--id", IDS[2], cwd=ledger.parent)
    down = Taking(*[OSError("away")] * 10_000)

    async def try_it() -> None:
        async with relaying(ledger, {"mine": down}):
            await until(lambda: len(down.offered) > 2)

    asyncio.run(try_it())
    (state,) = told("status", cwd=ledger.parent)
    assert state["replaying"] == 1
    sink = Taking()
    delivered(ledger, sink, [])
    assert [event.id for event in sink.taken] == IDS[2:3]


@pytest.mark.parametrize("told_of", [2, 0])
def test_a_sink_too_slow_for_a_whole_replay_gets_through_it_in_parts(
    told_of: int, ledger: Path
) -> None:
    taken: list[str] = []

    async def slow(events: Sequence[BillingEvent]) -> None:
        taken.extend(event.id for event in events[:2])
        if len(events) > 2:
            raise TryLater("slow", taken=[event.id for event in events[:told_of]])

    told("replay", "--sink", "mine", "--since", "2026-11-24", cwd=ledger.parent)
    delivered(ledger, slow, [])
    assert list(dict.fromkeys(taken)) == IDS


def test_new_events_do_not_wait_for_a_long_replay_nor_the_other_way_round(tmp_path: Path) -> None:
    path = tmp_path / "inf-ledger.db"
    many = [event_of(number) for number in range(1_000)]
    delivered(path, Taking(), many)
    told("replay", "--sink", "mine", "--since", "2026-11-24", cwd=tmp_path)
    sink = Taking()
    new = [event_of(number) for number in range(300)]
    delivered(path, sink, new)
    taken = [event.id for event in sink.taken]
    assert sorted(taken) == sorted([event.id for event in (*many, *new)])
    first = taken.index(new[-1].id)
    assert 300 <= first < 700  # in turns, batch by batch
    assert [i for i in taken if i in {e.id for e in new}] == [event.id for event in new]


def test_a_running_server_takes_a_replay_up_and_wait_tells_when_it_is_done(ledger: Path) -> None:
    sink = Taking()

    async def go() -> str:
        async with relaying(ledger, {"mine": sink}):
            options = ["replay", "--sink", "mine", "--id", IDS[5], "--wait"]
            shown = await asyncio.to_thread(events, *options, cwd=ledger.parent)
            assert [event.id for event in sink.taken] == IDS[5:6]
            return shown.stdout

    assert asyncio.run(go()) == "1 event has been sent to mine once more.\n"


WRONG: list[tuple[list[str], str]] = [
    (["replay", "--sink", "mine"], "say which events"),
    (["replay", "--sink", "mine", "--id", IDS[0], "--dead-letters"], "say which events"),
    (["replay", "--sink", "mine", "--since", "2026-11-24", "--dead-letters"], "exclude each other"),
    (["replay", "--sink", "mine", "--id", "x\n\x1b[2J"], "there is no event 'x\\n\\x1b[2J'"),
    (["replay", "--sink", "mine", "--since", "yesterday"], "--since is 'yesterday'; write 2026"),
    (["replay", "--sink", "other", "--id", IDS[0]], "knows no sink 'other'; known are: mine"),
    (["dead-letters", "--sink", "other"], "knows no sink 'other'; known are: mine"),
    (["status", "--ledger", "mysql://x"], "sqlite:///inf-ledger.db"),
    (["status", "--ledger", "sqlite:////none.db"], "there is no ledger at /none.db"),
    (
        ["replay", "--ledger", "sqlite:////none.db", "--sink", "a", "--id", "b"],
        "no ledger at /none",
    ),
]


@pytest.mark.parametrize(("options", "words"), WRONG, ids=[w[1] for w in WRONG])
def test_what_cannot_be_is_one_clear_line_and_exit_2(
    ledger: Path, options: list[str], words: str
) -> None:
    shown = events(*options, cwd=ledger.parent)
    assert shown.returncode == 2
    assert len(shown.stderr.splitlines()) == 1
    assert words in shown.stderr
    assert rows(ledger, "SELECT * FROM replay") == []


def test_a_ledger_that_is_locked_is_one_clear_line(ledger: Path) -> None:
    with reading(ledger) as db:
        db.execute("BEGIN IMMEDIATE")
        shown = events("replay", "--sink", "mine", "--id", IDS[0], cwd=ledger.parent)
        db.execute("ROLLBACK")
    assert shown.returncode == 2
    assert len(shown.stderr.splitlines()) == 1
    assert "locked" in shown.stderr
    assert rows(ledger, "SELECT * FROM replay") == []


def test_an_id_that_is_not_there_leaves_the_others_unsent_too(ledger: Path) -> None:
    shown = events("replay", "--sink", "mine", "--id", IDS[0], "--id", "none", cwd=ledger.parent)
    assert shown.returncode == 2
    assert rows(ledger, "SELECT * FROM replay") == []


def test_a_ledger_of_an_earlier_version_is_one_clear_line_until_it_is_migrated(
    tmp_path: Path,
) -> None:
    old_ledger(tmp_path / "inf-ledger.db")
    refused = events("status", cwd=tmp_path)
    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert "inf-middleware ledger migrate" in refused.stderr
    connect(tmp_path / "inf-ledger.db").close()
    (state,) = told("status", cwd=tmp_path)
    assert (state["sink"], state["replaying"]) == ("mine", 0)


def test_a_ledger_without_deliveries_says_so(tmp_path: Path) -> None:
    async def touch() -> None:
        ledger = SqliteLedger(tmp_path / "inf-ledger.db")
        await ledger.settle(HOURS[0])
        await ledger.aclose()

    asyncio.run(touch())
    assert "Nothing has been delivered" in events("status", cwd=tmp_path).stdout
    assert told("status", cwd=tmp_path) == []
