"""At least once, in order, each sink at its own pace, and nothing lost."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import BillingEvent
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ports import Rejected
from inf_middleware.sinks.delivery import BACKOFF_FIRST_S, BACKOFF_MAX_S, BATCH_MAX
from inf_middleware.sinks.relay import Relay
from tests.events import event_of
from tests.sinks.kit import DRAIN_S, EVENTS, IDS, Slept, Taking, dead_letters, until


def deliver(
    path: Path,
    sinks: dict[str, Any],
    events: Sequence[BillingEvent],
    check: Callable[[Relay, SqliteLedger], Awaitable[None]] | None = None,
    slept: Slept | None = None,
) -> None:
    async def go() -> None:
        ledger = SqliteLedger(path)
        relay = Relay(ledger, sinks, sleep=slept or Slept(), jitter=lambda: 1.0)
        relay.start()
        await asyncio.gather(*(ledger.settle(event) for event in events))
        await relay.drain(DRAIN_S)
        if check is not None:
            await check(relay, ledger)
        await relay.aclose()
        await ledger.aclose()

    asyncio.run(go())


def test_every_event_reaches_every_sink_in_order_with_the_same_bytes(tmp_path: Path) -> None:
    one, two = Taking(), Taking()
    deliver(tmp_path / "a.db", {"one": one, "two": two}, EVENTS)
    for sink in (one, two):
        assert [event.id for event in sink.taken] == IDS
        assert [event.encode() for event in sink.taken] == [event.encode() for event in EVENTS]
        assert max(map(len, sink.offered)) <= BATCH_MAX


def test_what_a_sink_did_not_take_is_offered_again_and_others_do_not_wait(tmp_path: Path) -> None:
    good, bad = Taking(), Taking(*(OSError("away") for _ in range(12)))
    slept = Slept()
    deliver(tmp_path / "a.db", {"good": good, "bad": bad}, EVENTS[:5], slept=slept)
    assert [event.id for event in good.taken] == [event.id for event in bad.taken] == IDS[:5]
    assert len(bad.offered) >= 13
    assert all(offered == IDS[:5][: len(offered)] for offered in bad.offered[:12])
    waits = [s for s in slept.seconds if s >= BACKOFF_FIRST_S]
    assert waits == [min(BACKOFF_FIRST_S * 2**n, BACKOFF_MAX_S) for n in range(12)]


def test_a_sink_that_is_down_is_warned_of_with_the_age_of_its_oldest_event(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deliver(tmp_path / "a.db", {"bad": Taking(OSError("a\nway"))}, EVENTS[:1])
    (warning,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "sink bad" in warning
    assert "s old" in warning
    assert "\n" not in warning


def test_a_sink_too_slow_for_a_whole_batch_gets_what_it_gets_through(tmp_path: Path) -> None:
    offered: list[list[str]] = []
    taken: list[str] = []

    async def slow(events: Sequence[BillingEvent]) -> None:
        offered.append([event.id for event in events])
        if len(events) > 30 and len(taken) < 60:
            raise OSError("too many at once")
        taken.extend(offered[-1])

    deliver(tmp_path / "a.db", {"slow": slow}, EVENTS[:BATCH_MAX])
    deliver(tmp_path / "a.db", {"slow": slow}, EVENTS[BATCH_MAX:])
    assert taken == IDS
    assert max(map(len, offered)) == BATCH_MAX


def test_refused_events_are_dead_letters_and_the_others_count_as_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    sink = Taking(Rejected({IDS[1]: "no such customer", "not-ours": "x"}))
    deliver(path, {"picky": sink}, EVENTS[:4])
    deliver(path, {"picky": sink}, EVENTS[4:6])
    assert dead_letters(path) == [("picky", IDS[1], "no such customer")]
    assert sink.offered[0] == IDS[: len(sink.offered[0])]
    assert [i for ids in sink.offered for i in ids] == IDS[:6]


def test_a_restart_resumes_at_the_cursor_and_a_new_sink_begins_with_the_oldest(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"
    first, second, new = Taking(), Taking(), Taking()
    deliver(path, {"mine": first}, EVENTS[:3])
    deliver(path, {"mine": second, "new": new}, EVENTS[3:5])
    assert [event.id for event in first.taken] == IDS[:3]
    assert [event.id for event in second.taken] == IDS[3:5]
    assert [event.id for event in new.taken] == IDS[:5]


def test_what_was_sent_before_the_cursor_moved_is_sent_again_with_the_same_id(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.db"

    class DiesBeforeTheCursor(SqliteLedger):
        async def advance(self, sink: str, place: int, rejected: Any) -> None:
            if place:
                raise asyncio.CancelledError
            await super().advance(sink, place, rejected)

    async def go() -> None:
        ledger = DiesBeforeTheCursor(path)
        relay = Relay(ledger, {"mine": before}, sleep=Slept())
        relay.start()
        await ledger.settle(EVENTS[0])
        await before.took.wait()
        await relay.aclose()
        await ledger.aclose()

    before, after = Taking(), Taking()
    asyncio.run(go())
    deliver(path, {"mine": after}, [])
    assert [event.encode() for event in after.taken] == [event.encode() for event in before.taken]


def test_one_process_relays_and_the_next_takes_over(tmp_path: Path) -> None:
    path = tmp_path / "a.db"

    async def go() -> None:
        first, second = SqliteLedger(path), SqliteLedger(path)
        assert await first.elect("mine")
        assert await first.elect("mine")
        assert not await second.elect("mine")
        await first.aclose()
        assert await second.elect("mine")
        await second.aclose()

    asyncio.run(go())


def test_an_election_that_was_given_up_keeps_nobody_from_delivering(tmp_path: Path) -> None:
    async def go() -> None:
        first, second = SqliteLedger(tmp_path / "a.db"), SqliteLedger(tmp_path / "a.db")
        for _ in range(20):
            electing = asyncio.create_task(first.elect("mine"))
            await asyncio.sleep(0)
            electing.cancel()
            await asyncio.wait([electing])
            await first.resign("mine")
            await first.settle(event_of())  # after what was begun in a thread
            assert await second.elect("mine")
            await second.resign("mine")
        await first.aclose()
        await second.aclose()

    asyncio.run(go())


def test_who_is_the_relay_no_more_tells_no_lag(tmp_path: Path) -> None:
    class Losing(SqliteLedger):
        loses = False

        async def elect(self, sink: str) -> bool:
            return not self.loses and await super().elect(sink)

    sink = Taking()

    async def go() -> None:
        ledger = Losing(tmp_path / "a.db")
        relay = Relay(ledger, {"mine": sink}, sleep=Slept())
        relay.start()
        await ledger.settle(EVENTS[0])
        await relay.drain(DRAIN_S)
        (sample,) = await relay.samples(1.0)
        assert (sample.lag_s or 0.0) > 0
        ledger.loses = True
        await until(lambda: not relay.is_elected)
        (sample,) = await relay.samples(1.0)
        assert sample.lag_s == 0
        ledger.loses = False
        await until(lambda: relay.is_elected)
        (sample,) = await relay.samples(1.0)
        assert not sample.lag_s  # it has delivered nothing since
        await relay.aclose()
        await ledger.aclose()

    asyncio.run(go())


def test_events_of_other_processes_are_delivered_too(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    sink = Taking()

    async def go() -> None:
        relaying, other = SqliteLedger(path), SqliteLedger(path)
        relay = Relay(relaying, {"mine": sink})
        relay.start()
        await relay.drain(DRAIN_S)
        await other.settle(EVENTS[0])
        async with asyncio.timeout(DRAIN_S):
            await sink.took.wait()
        await relay.aclose()
        await relaying.aclose()
        await other.aclose()

    asyncio.run(go())
    assert [event.id for event in sink.taken] == IDS[:1]


def test_starting_again_on_a_new_event_loop_goes_on_delivering(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "a.db")
    sink = Taking()
    relay = Relay(ledger, {"mine": sink})

    async def once(number: int) -> None:
        relay.start()
        relay.start()
        await ledger.settle(EVENTS[number])
        await relay.drain(DRAIN_S)

    for number in range(2):
        asyncio.run(once(number))
    asyncio.run(ledger.aclose())
    assert [event.id for event in sink.taken] == IDS[:2]
