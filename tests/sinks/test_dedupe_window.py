"""An event of unknown outcome is sent again only as long as the far end knows its id again."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ports import TryLater
from tests.sinks.kit import (
    DRAIN_S,
    EVENTS,
    IDS,
    Slept,
    Taking,
    Windowed,
    dead_letters,
    relaying,
    until,
)

HOUR_S = Windowed.dedupe_window_s


def deliver(
    path: Path, sink: Taking, count: int, *, slept: Slept | None = None, drains: bool = True
) -> None:
    """Let the relay of one more process deliver, the first `count` events being in the ledger."""

    async def go() -> None:
        ledger = SqliteLedger(path)
        await asyncio.gather(*(ledger.settle(event) for event in EVENTS[:count]))
        await ledger.aclose()
        async with relaying(path, {"mine": sink}, slept=slept) as (_, relay):
            if drains:
                await relay.drain(DRAIN_S)
            else:
                await until(lambda: bool(sink.offered) and not sink.failures)

    asyncio.run(go())


def at(seconds: float) -> Slept:
    slept = Slept()
    slept.now = datetime(2026, 11, 24, 1, tzinfo=UTC) + timedelta(seconds=seconds)
    return slept


class Dying(Windowed):
    """Takes a batch, and its process is dead before anybody hears of it."""

    async def __call__(self, events: object) -> None:
        self.offered.append([])
        await asyncio.Event().wait()


def test_within_the_window_it_is_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    deliver(path, Dying(), 3, drains=False)
    sink = Windowed()
    # Well within it: each time that the relay asks in vain to be elected moves the clock, too.
    deliver(path, sink, 5, slept=at(HOUR_S / 2))
    # The same batch until its outcome is known, and then what came later.
    assert sink.offered == [IDS[:3], IDS[3:5]]
    assert dead_letters(path) == []


def test_beyond_the_window_it_is_set_aside_and_what_was_never_sent_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.db"
    deliver(path, Dying(), 3, drains=False)
    sink = Windowed()
    deliver(path, sink, 5, slept=at(HOUR_S + 10))
    assert sink.offered == [IDS[3:5]]
    assert [(name, event_id) for name, event_id, _ in dead_letters(path)] == [
        ("mine", event_id) for event_id in IDS[:3]
    ]
    assert all(reason.startswith("needs reconcile: ") for *_, reason in dead_letters(path))
    assert f"event {IDS[0]} is a dead letter" in caplog.text


def test_the_reason_names_a_long_window_in_full(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    deliver(path, Dying(), 1, drains=False)
    sink = Windowed()
    sink.dedupe_window_s = 2_592_000.0
    deliver(path, sink, 1, slept=at(2_600_000))
    ((*_, reason),) = dead_letters(path)
    assert "knows an id again for 2592000 s only" in reason


def test_a_sink_without_a_window_is_sent_everything_again_whenever(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    deliver(path, Dying(), 3, drains=False)
    sink = Taking()
    deliver(path, sink, 3, slept=at(1e9))
    assert sink.offered == [IDS[:3]]


def test_a_failing_sink_of_a_living_process_is_held_to_its_window_too(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    sink = Windowed(*(OSError("reset") for _ in range(1_000)))
    slept = Slept()

    async def go() -> None:
        async with relaying(path, {"mine": sink}, slept=slept) as (ledger, relay):
            await ledger.settle(EVENTS[0])
            await relay.drain(DRAIN_S)

    asyncio.run(go())
    assert 60 <= len(sink.offered) < 100  # an hour of back-off
    assert [event_id for _, event_id, _ in dead_letters(path)] == IDS[:1]


def test_what_was_certainly_not_taken_may_wait_for_any_time(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    unauthorized = [TryLater("401", not_taken=True) for _ in range(200)]
    sink = Windowed(*unauthorized)
    deliver(path, sink, 3)
    assert len(sink.offered) == 201
    assert [event.id for event in sink.taken] == IDS[:3]
    assert dead_letters(path) == []


def test_a_certain_refusal_does_not_settle_an_older_doubt(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    unauthorized = [TryLater("401", not_taken=True) for _ in range(200)]
    sink = Windowed(OSError("reset"), *unauthorized)
    deliver(path, sink, 1)
    assert sink.taken == []
    assert [event_id for _, event_id, _ in dead_letters(path)] == IDS[:1]
