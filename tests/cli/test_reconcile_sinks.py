"""What a far end has is held against what was delivered to it, event by event."""

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis
from click.testing import CliRunner, Result

from inf_middleware import BillingEvent
from inf_middleware.cli import main
from inf_middleware.domain.moments import rfc3339
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ports import Rejected
from inf_middleware.sinks.relay import Relay
from inf_middleware.sinks.uris import sink_from_uri
from tests.events import event_of
from tests.kit import reading
from tests.sinks.redis_server import RedisServer

# Of now: what waits for more than a day is a difference.
NOW = rfc3339(time.time_ns())
EVENTS = [event_of(number, started_at=NOW, settled_at=NOW) for number in range(12)]


class House:
    """A ledger whose events were delivered to one far end, which can be asked."""

    def __init__(self, folder: Path, uri: str) -> None:
        self.folder = folder
        self.uri = uri
        self.ledger = f"sqlite:///{folder}/ledger.db"

    def deliver(self, *events: BillingEvent, refusing: Sequence[str] = ()) -> None:
        sink = sink_from_uri(self.uri)

        async def take(batch: Sequence[BillingEvent]) -> None:
            await sink([event for event in batch if event.id not in refusing])
            if refused := {event.id: "no" for event in batch if event.id in refusing}:
                raise Rejected(refused)

        async def go() -> None:
            ledger = SqliteLedger.from_uri(self.ledger)
            for event in events:
                await ledger.settle(event)
            relay = Relay(ledger, {"mine": take})
            relay.start()
            await relay.drain(30)
            await relay.aclose()
            await ledger.aclose()
            if hasattr(sink, "aclose"):
                await sink.aclose()

        asyncio.run(go())

    def run(self, *words: str, code: int = 0) -> Result:
        command = ["ledger", "reconcile", "--ledger", self.ledger, *words]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == code, result.output
        return result

    def told(self, *, code: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the check of the sink, and what came of comparing."""
        asked = self.run("--sink", f"mine={self.uri}", "--json", code=code)
        found = json.loads(asked.stdout)
        return found["checks"][-1], found["sinks"]["mine"]["compared"]


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture(params=["jsonl", "rotated", "redis"])
def house(request: pytest.FixtureRequest, tmp_path: Path) -> House:
    if request.param == "jsonl":
        return House(tmp_path, f"jsonl:{tmp_path}/events.jsonl")
    if request.param == "rotated":
        return House(tmp_path, f"jsonl:{tmp_path}/events.jsonl?bytes_max=2000")
    server: RedisServer = request.getfixturevalue("redis_server")
    return House(tmp_path, f"redis://127.0.0.1:{server.port}?stream={tmp_path.name}")


def bend(house: House, old: bytes, new: bytes) -> None:
    """Change what the far end has; an event that becomes nothing is gone."""
    if house.uri.startswith("jsonl"):
        for path in house.folder.glob("events*.jsonl"):
            lines = [line.replace(old, new) for line in path.read_bytes().splitlines(keepends=True)]
            path.write_bytes(b"".join(line for line in lines if line.strip()))
        return
    port, stream = house.uri.split(":")[2].split("?stream=")
    with redis.Redis(port=int(port)) as client:
        entries: Any = client.xrange(stream)
        client.delete(stream)
        for _, fields in entries:
            body = fields[b"event"].replace(old, new)
            if body:
                client.xadd(stream, {**fields, b"event": body})


def test_what_was_delivered_is_all_there(house: House) -> None:
    for event in EVENTS:
        house.deliver(event)
    check, compared = house.told()
    assert (check["ok"], check["count"]) == (True, 0)
    assert compared == {"events": 12, "repeated": 0, "forgotten": 0, "unreadable": 0}
    assert "12 found there" in house.run("--sink", f"mine={house.uri}").stdout


def test_what_is_missing_other_or_nobody_s_is_named(house: House) -> None:
    house.deliver(*EVENTS)
    missing, other = EVENTS[3], EVENTS[5]
    bend(house, missing.encode(), b"")
    amount = b'"amount_nano":"%s"' % other.amount_nano.encode()
    bend(house, other.encode(), other.encode().replace(amount, b'"amount_nano":"7"'))
    stranger = event_of(99)
    bend(house, EVENTS[7].encode(), stranger.encode())
    check, compared = house.told(code=1)
    assert check["ok"] is False
    assert check["differences"] == [
        f"{missing.id}: is not there",
        (
            f"{other.id}: differs; it is there of 7 CNY nano,"
            f" and of {other.amount_nano} CNY nano in the ledger"
        ),
        f"{EVENTS[7].id}: is not there",
        f"{stranger.id}: is there, of {stranger.amount_nano} CNY nano, and not in the ledger",
    ]
    assert compared["events"] == 10


def test_repeated_refused_and_early_events_are_no_difference(house: House) -> None:
    refused = EVENTS[2]
    house.deliver(*EVENTS[:6], refusing=[refused.id])
    house.deliver(*EVENTS[6:])
    with reading(house.folder / "ledger.db") as db:  # killed between send and cursor
        db.execute("UPDATE sink_cursor SET seq = 9")
    assert house.told()[0]["ok"] is True
    house.deliver()  # those after the cursor come again
    check, compared = house.told()
    assert check["ok"] is True
    assert (compared["events"], compared["repeated"]) == (11, 3)


def test_a_far_end_that_keeps_the_latest_only_is_not_blamed_for_the_rest(tmp_path: Path) -> None:
    house = House(tmp_path, f"jsonl:{tmp_path}/events.jsonl?bytes_max=2000&files_max=2")
    for event in EVENTS:
        house.deliver(event)
    check, compared = house.told()
    assert check["ok"] is True
    assert compared["forgotten"] > 0
    assert compared["events"] + compared["forgotten"] == 12
    for path in tmp_path.glob("events*.jsonl"):
        path.unlink()
    assert house.told(code=1)[0]["count"] == 12  # nothing at all is no bound


def test_the_sinks_of_the_settings_are_asked_where_they_can_be(tmp_path: Path) -> None:
    house = House(tmp_path, f"jsonl:{tmp_path}/events.jsonl")
    house.deliver(*EVENTS)
    config = tmp_path / "inf.toml"
    config.write_text(
        f'[sinks]\nmine = "{house.uri}"\nmeter = "https://meter.example/x"\n',
        "utf-8",
    )
    with reading(tmp_path / "ledger.db") as db:
        db.execute("INSERT INTO sink_cursor VALUES ('meter', 12)")
    result = house.run("--sinks", "--config", str(config), "--json")
    sinks = json.loads(result.stdout)["sinks"]
    assert sinks["mine"]["compared"]["events"] == 12
    assert "compared" not in sinks["meter"]
    assert "sink meter: cannot be asked what it has" in result.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--sink", "mine"), "--sink is 'mine'; write NAME=jsonl:PATH"),
        (("--sink", "mine=https://meter.example/x"), "cannot be asked what they have"),
        (("--sink", "other=jsonl:x"), "knows no sink 'other'"),
        (("--sink", "mine=redis://127.0.0.1:1?stream=x"), "sink mine cannot be asked what it has"),
    ],
)
def test_what_cannot_be_asked_is_one_clear_line(
    words: Sequence[str], says: str, tmp_path: Path
) -> None:
    house = House(tmp_path, f"jsonl:{tmp_path}/events.jsonl")
    house.deliver(EVENTS[0])
    result = house.run(*words, code=2)
    assert says in result.stderr
    assert len(result.stderr.splitlines()) == 1
