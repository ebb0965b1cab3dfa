"""What is PostgreSQL's own: many hosts, its settings, its crashes. The rest is in the contract."""

import asyncio
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from click.testing import CliRunner

from inf_middleware import BillingEvent, ConfigError, Usage, open_ledger
from inf_middleware.cli import main
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.deliveries import sink_states
from inf_middleware.ledgers.postgres import PostgresLedger
from inf_middleware.ledgers.postgres_session import BATCH_MAX, batch_size
from inf_middleware.ledgers.postgres_steps import SCHEMA_VERSION, numbered
from inf_middleware.ledgers.steps import Ask
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.ports import Rejected
from inf_middleware.sinks.relay import Relay
from tests.events import event_of
from tests.ledgers.conftest import Opened
from tests.ledgers.postgres_server import PostgresServer, serving_postgres
from tests.processes import kill_rounds
from tests.sinks.kit import DRAIN_S, Taking

ROOT = Path(__file__).parent.parent.parent


def test_constructing_connects_to_nothing_and_the_uri_is_all_it_takes() -> None:
    assert isinstance(ledger_of("postgresql://nowhere/x"), PostgresLedger)
    with pytest.raises(ConfigError):
        ledger_of("mysql://nowhere/x")


def test_a_server_that_is_not_there_is_told_and_nothing_hangs(tmp_path: Path) -> None:
    async def go() -> None:
        ledger = PostgresLedger(f"postgresql://postgres@/x?host={tmp_path}")
        for attempt in (ledger.settle(event_of()), ledger.check(), ledger.elect("mine")):
            with pytest.raises(LedgerUnavailable):
                await attempt
        await ledger.aclose()

    asyncio.run(go())


DROPPED = """
import asyncio, sys
from inf_middleware import Gate
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT

async def take(events): ...

for _ in range(5):
    app = JsonApp(completion(usage=usage_of(1, 1)))
    gate = Gate(app, accounts={"sk": "tier1"}, ledger=sys.argv[1], sinks={"mine": take})
    print(asyncio.run(post(gate, CHAT, key="sk")).status)
"""


def test_a_stack_that_is_dropped_without_a_shutdown_keeps_nobody_from_writing(
    postgres: PostgresServer,
) -> None:
    command = [sys.executable, "-c", DROPPED, postgres.uri()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=25)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["200"] * 5


@pytest.mark.parametrize("setting", ["synchronous_commit"])
def test_a_server_that_would_lose_bills_is_refused_in_words(
    setting: str, postgres: PostgresServer
) -> None:
    uri = postgres.uri()

    async def go() -> None:
        connection = await asyncpg.connect(uri)
        name = await connection.fetchval("SELECT current_database()")
        await connection.execute(f"ALTER DATABASE {name} SET {setting} = off")
        await connection.close()
        ledger = PostgresLedger(uri)
        with pytest.raises(LedgerUnavailable, match=f"{setting} = off"):
            await ledger.settle(event_of())
        await ledger.aclose()

    asyncio.run(go())


def test_settlements_that_wait_together_are_committed_together(postgres: PostgresServer) -> None:
    async def go() -> int:
        ledger = PostgresLedger(postgres.uri())
        await ledger.settle(event_of(-1))
        before = ledger.commits
        await asyncio.gather(*(ledger.settle(event_of(n)) for n in range(BATCH_MAX * 2)))
        await ledger.aclose()
        return ledger.commits - before

    assert asyncio.run(go()) <= 4


@pytest.mark.parametrize(
    ("waiting", "in_step", "taken"),
    [(63, True, 63), (64, True, 32), (65, True, 33), (10**4, True, 512), (500, False, 500)],
)
def test_many_that_come_in_step_with_the_commits_are_split_once(
    waiting: int, in_step: bool, taken: int
) -> None:
    assert min(batch_size(waiting, in_step), waiting) == taken


def test_what_was_held_by_another_host_is_ended_by_whoever_settles(
    postgres: PostgresServer,
) -> None:
    opened = Opened(postgres.uri())

    async def go(book: Any) -> None:
        await book.recharge("acme", "1", reference="r")
        await book.ledger.settle(event_of(1))  # from here on bills are written in one step
        other = ledger_of(opened.uri)
        bills = [event_of(number) for number in (2, 3, 4)]
        for bill in bills:
            assert await other.hold(bill, 10**8, 0) is None
        await asyncio.gather(*(book.ledger.settle(bill) for bill in (*bills, bills[0])))
        await book.ledger.settle(event_of(5))  # and again
        await other.aclose()

    opened.run(go)
    assert opened.rows("SELECT held_nano FROM balance WHERE account = 'acme'") == [(0,)]
    assert opened.rows("SELECT count(*), (SELECT count(*) FROM hold) FROM outbox") == [(6, 0)]


def test_one_that_cannot_be_recorded_does_not_fail_its_neighbours(opened: Opened) -> None:
    events = [event_of(1), event_of(2, input_tokens=-1), event_of(3)]

    async def go(book: Any) -> Any:
        return await asyncio.gather(
            *(book.ledger.settle(event) for event in events), return_exceptions=True
        )

    kinds = [type(result).__name__ for result in opened.run(go)]
    assert kinds == ["NoneType", "LedgerUnavailable", "NoneType"]
    assert opened.rows("SELECT count(*) FROM request") == [(2,)]


def test_texts_that_no_database_takes_are_recorded_as_near_as_can_be(
    postgres: PostgresServer,
) -> None:
    opened = Opened(postgres.uri())

    async def go(book: Any) -> None:
        await book.ledger.settle(event_of(model="a\x00b"))

    opened.run(go)
    assert opened.rows("SELECT model FROM request") == [("a\ufffdb",)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE request SET amount_nano = 0",
        "DELETE FROM request",
        "UPDATE posting SET amount_nano = 1",
        "DELETE FROM posting",
        "UPDATE outbox SET body = ''",
    ],
)
def test_history_is_append_only(statement: str, postgres: PostgresServer) -> None:
    uri = postgres.uri()

    async def go() -> None:
        ledger = PostgresLedger(uri)
        await ledger.settle(event_of())
        await ledger.aclose()
        connection = await asyncpg.connect(uri, server_settings={"search_path": "inf_ledger"})
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute(statement)
        await connection.close()

    asyncio.run(go())


def test_one_of_several_processes_is_the_relay_until_it_ends(postgres: PostgresServer) -> None:
    uri = postgres.uri()

    async def go() -> None:
        first, second = PostgresLedger(uri), PostgresLedger(uri)
        assert await asyncio.gather(*(first.elect("mine") for _ in range(5))) == [True] * 5
        assert not await second.elect("mine")
        await first.aclose()
        assert await second.elect("mine")
        await second.aclose()

    asyncio.run(go())


def test_who_is_not_the_relay_asks_once_for_all_its_sinks(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, connect = postgres.uri(), asyncpg.connect
    asked: list[str] = []
    sinks = [f"sink{number}" for number in range(5)]

    async def counted(*given: Any, **options: Any) -> Any:
        asked.append("again")
        return await connect(*given, **options)

    async def go() -> None:
        first, second = PostgresLedger(uri), PostgresLedger(uri)
        assert await asyncio.gather(*map(first.elect, sinks)) == [True] * 5
        monkeypatch.setattr(asyncpg, "connect", counted)
        for round_ in (1, 2):
            assert await asyncio.gather(*map(second.elect, sinks)) == [False] * 5
            assert len(asked) == round_
        await first.aclose()
        await second.aclose()

    asyncio.run(go())


def test_two_hosts_hold_no_more_than_there_is(postgres: PostgresServer) -> None:
    opened = Opened(postgres.uri())

    async def go(book: Any) -> None:
        await book.recharge("acme", "0.10", reference="r")
        others = [ledger_of(opened.uri) for _ in range(3)]
        answers = await asyncio.gather(
            *(
                ledger.hold(event_of(n, usage=Usage(0, 0)), 10_000_000, 0)
                for n in range(30)
                for ledger in others
            )
        )
        assert answers.count(None) == 10
        await asyncio.gather(*(ledger.aclose() for ledger in others))

    opened.run(go)


def test_a_ledger_of_an_earlier_version_is_brought_forward(postgres: PostgresServer) -> None:
    uri = postgres.uri()
    first = files("inf_middleware") / "ledgers" / "postgres-2.sql"

    async def go() -> None:
        connection = await asyncpg.connect(uri)
        async with connection.transaction():
            await connection.execute(first.read_text("utf-8"))
        await connection.close()
        with pytest.raises(LedgerUnavailable, match="schema version 2"):
            await ledger_of(uri).check()
        async with await open_ledger(uri) as book:
            await book.recharge("acme", "1", reference="r")
            await book.ledger.check()

    asyncio.run(go())


def test_the_command_works_on_it(postgres: PostgresServer) -> None:
    uri = postgres.uri()
    bill = event_of(usage=Usage(1000, 0))

    async def settle() -> None:
        ledger = ledger_of(uri)
        await ledger.settle(bill)
        await ledger.aclose()

    def told(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(main, [*words, "--ledger", uri, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code == 0 else result.stderr

    assert "there is no ledger" in told("account", "list", code=2)
    assert told("recharge", "acme", "500", "--reference", "r1")["tier"] == "Tier1"
    asyncio.run(settle())
    assert told("credit", bill.id, "0.004")["balance"] == "499.994"
    assert [row["amount"] for row in told("usage", "--by", "model")] == ["0.006"]
    assert told("usage")[0]["tier"] == "Tier1"
    assert told("ledger", "show", bill.id)["balance_after"] == "499.99"
    assert told("statement", "acme", "--month", "2026-11")["account"] == "acme"
    assert told("ledger", "migrate")["schema_version"] == SCHEMA_VERSION
    assert told("ledger", "reconcile")["ok"] is True
    exported = CliRunner().invoke(main, ["ledger", "export", "--ledger", uri])
    assert len(exported.stdout.splitlines()) == 3
    of_days = ["--from", "2026-11-24", "--to", "2026-11-25", "--ledger", uri]
    of_bills = CliRunner().invoke(main, ["ledger", "export", *of_days]).stdout.splitlines()
    assert [json.loads(line)["request_id"] for line in of_bills] == [bill.id]
    no_days = ["--from", "2025-11-24", "--to", "2025-11-25", "--ledger", uri]
    assert not CliRunner().invoke(main, ["ledger", "export", *no_days]).stdout


def test_deliveries_are_seen_and_events_sent_once_more(postgres: PostgresServer) -> None:
    uri = postgres.uri()
    events = [event_of(number) for number in range(5)]

    def told(*words: str, code: int = 0) -> Any:
        result = CliRunner().invoke(main, ["events", *words, "--ledger", uri, "--json"])
        assert result.exit_code == code, result.output
        return json.loads(result.stdout) if code == 0 else result.stderr

    async def deliver(sink: Taking, *stored: BillingEvent) -> list[str]:
        """Deliver what waits, until nothing is to be sent once more; return what came."""
        ledger = PostgresLedger(uri)
        for event in stored:
            await ledger.settle(event)
        relay = Relay(ledger, {"mine": sink})
        relay.start()
        await relay.drain(DRAIN_S)
        while await ledger.replay("mine", 1) is not None:  # noqa: ASYNC110 - a table has no event
            await asyncio.sleep(0.01)
        await relay.aclose()
        await ledger.aclose()
        return [event.id for event in sink.taken]

    assert "there is no ledger" in told("status", code=2)
    refusing = Taking(Rejected({events[1].id: "no customer"}))
    assert events[1].id not in asyncio.run(deliver(refusing, *events))
    (state,) = told("status")
    assert (state["delivered"], state["pending"], state["dead_letters"]) == (5, 0, 1)
    (letter,) = told("dead-letters", "--sink", "mine")
    assert (letter["request_id"], letter["reason"]) == (events[1].id, "no customer")
    assert "no event 'none'" in told("replay", "--sink", "mine", "--id", "none", code=2)
    assert "knows no sink 'other'" in told("replay", "--sink", "other", "--id", "a", code=2)
    assert told("replay", "--sink", "mine", "--dead-letters") == {"sink": "mine", "replayed": 1}
    asked = ("--id", events[4].id, "--id", events[3].id)
    assert told("replay", "--sink", "mine", *asked)["replayed"] == 2
    assert told("status")[0]["replaying"] == 3
    again = [events[number].id for number in (1, 3, 4)]
    assert asyncio.run(deliver(Taking())) == again
    assert told("dead-letters") == []
    assert told("replay", "--sink", "mine", "--since", "2026-11-24")["replayed"] == 5
    assert asyncio.run(deliver(Taking())) == [event.id for event in events]
    assert told("status")[0]["replaying"] == 0


def test_the_state_of_sinks_is_told_without_going_through_all_events(
    postgres: PostgresServer,
) -> None:
    uri = postgres.uri()

    async def go() -> list[str]:
        ledger = PostgresLedger(uri)
        await ledger.advance("mine", 20_000, {})
        await ledger.aclose()
        connection = await asyncpg.connect(uri, server_settings={"search_path": "inf_ledger"})
        await connection.execute(  # more than was there when statistics were made, if ever
            "INSERT INTO outbox (id, body) SELECT CAST(n AS TEXT), 'x'"
            " FROM generate_series(1, 20000) AS n"
        )
        plans: list[str] = []
        steps, rows = sink_states(), None
        while True:
            try:
                ask = steps.send(rows)
            except StopIteration:
                break
            assert isinstance(ask, Ask)
            sql = numbered(ask.sql)
            found = await connection.fetch(f"EXPLAIN {sql}", *ask.params)
            plans += [line for (line,) in found]
            rows = [tuple(row) for row in await connection.fetch(sql, *ask.params)]
        await connection.close()
        return plans

    plans = asyncio.run(go())
    assert any("on outbox" in line for line in plans)
    assert not [line for line in plans if "Seq Scan on outbox" in line]


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    with serving_postgres() as server:
        yield server


CHILD = """
import asyncio, sys
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.ports import Rejected
from inf_middleware.sinks.relay import Relay
from tests.events import event_of

async def settle(ledger, number):
    event = event_of(number, account=sys.argv[2])
    while True:
        try:
            await ledger.settle(event)
        except LedgerUnavailable:
            await asyncio.sleep(0.05)
        else:
            print(event.id, flush=True)
            return

async def main():
    ledger = ledger_of(sys.argv[1])
    for start in range(0, 10**6, 16):
        await asyncio.gather(*(settle(ledger, start + n) for n in range(16)))

asyncio.run(main())
"""


def test_no_acknowledged_settlement_is_lost_when_server_or_client_are_killed(
    own_server: PostgresServer,
) -> None:
    opened = Opened(own_server.uri())
    rng = random.Random(5)
    acknowledged: set[str] = set()
    for round_ in range(kill_rounds()):
        children = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, opened.uri, f"a{round_}{n}"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=ROOT,
            )
            for n in range(2)
        ]
        for child in children:
            assert child.stdout is not None
            acknowledged.add(child.stdout.readline().strip())
        time.sleep(rng.uniform(0.02, 0.2))  # the moment of the kill is meant to be any
        children[0].send_signal(signal.SIGKILL)
        own_server.stop(signal.SIGQUIT)  # all its processes at once, nothing written out
        own_server.start()
        assert children[1].stdout is not None
        acknowledged.add(children[1].stdout.readline().strip())  # it heals by itself
        children[1].send_signal(signal.SIGKILL)
        for child in children:
            rest, _ = child.communicate(timeout=20)
            acknowledged.update(line for line in rest.splitlines() if len(line) == 36)
    stored = {row[0] for row in opened.rows("SELECT request_id FROM request")}
    assert len(acknowledged) > 50
    assert acknowledged <= stored
    counts = opened.rows(
        "SELECT (SELECT count(*) FROM request), (SELECT count(*) FROM outbox),"
        " (SELECT count(*) FROM posting)"
    )
    assert set(counts[0]) == {len(stored)}
    reconciled = CliRunner().invoke(main, ["ledger", "reconcile", "--ledger", opened.uri])
    assert reconciled.exit_code == 0, reconciled.output
