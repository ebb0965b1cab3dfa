"""Whatever a sink does ends as a verdict on each event: nothing lost, order kept, others go on."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_middleware import BillingEvent
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ports import Rejected, TryLater
from inf_middleware.sinks.delivery import BACKOFF_FIRST_S, BACKOFF_MAX_S, RETRY_AFTER_MAX_S
from inf_middleware.sinks.offer import REASON_CHARACTERS_MAX, offer
from inf_middleware.sinks.relay import Relay
from tests.sinks.kit import (
    DRAIN_S,
    EVENTS,
    IDS,
    Slept,
    Taking,
    dead_letters,
    relaying,
    until,
)


def deliver(path: Path, sink: Any, events: Sequence[BillingEvent], **options: Any) -> None:
    async def go() -> None:
        ledger = SqliteLedger(path)
        await asyncio.gather(*(ledger.settle(event) for event in events))
        await ledger.aclose()
        async with relaying(path, {"mine": sink}, **options) as (_, relay):
            await relay.drain(DRAIN_S)

    asyncio.run(go())


def test_a_slow_sink_keeps_nobody_waiting_and_gets_all_in_its_time(tmp_path: Path) -> None:
    fast, slow = Taking(), Taking()
    gate = asyncio.Event()

    async def slowly(events: Sequence[BillingEvent]) -> None:
        await gate.wait()
        await slow(events)

    async def go() -> None:
        sinks = {"slow": slowly, "fast": fast}
        async with relaying(tmp_path / "a.db", sinks) as (ledger, relay):
            await asyncio.gather(*(ledger.settle(event) for event in EVENTS))
            await until(lambda: len(fast.taken) == len(EVENTS))
            assert slow.taken == []
            gate.set()
            await relay.drain(DRAIN_S)

    asyncio.run(go())
    assert [event.id for event in slow.taken] == [event.id for event in fast.taken] == IDS


def test_a_part_that_was_taken_is_not_offered_again(tmp_path: Path) -> None:
    sink = Taking(TryLater("half", taken=IDS[:3], rejected={IDS[3]: "no such customer"}))
    deliver(tmp_path / "a.db", sink, EVENTS[:6])
    assert sink.offered == [IDS[:6], IDS[4:6]]
    assert dead_letters(tmp_path / "a.db") == [("mine", IDS[3], "no such customer")]


def test_what_lies_behind_an_open_event_waits_for_it(tmp_path: Path) -> None:
    sink = Taking(TryLater("a hole", taken=[IDS[0], IDS[2]], rejected={IDS[3]: "x"}))
    deliver(tmp_path / "a.db", sink, EVENTS[:4])
    assert sink.offered == [IDS[:4], IDS[1:4]]
    assert dead_letters(tmp_path / "a.db") == []


def test_a_far_end_that_asks_for_patience_gets_it_within_bounds(tmp_path: Path) -> None:
    asked = [30.0, 0.0, -5.0, 1e9, float(BACKOFF_MAX_S)]
    slept = Slept()
    sink = Taking(*(TryLater("busy", after_s=after_s) for after_s in asked))
    deliver(tmp_path / "a.db", sink, EVENTS[:1], slept=slept)
    waits = [s for s in slept.seconds if s >= BACKOFF_FIRST_S]
    assert waits[:5] == pytest.approx([33.0, 1.0, 2.0, RETRY_AFTER_MAX_S * 1.1, 66.0])


class Hanging(Taking):
    """Takes its second offer; the first never ends by itself, and may not be cancelled at once."""

    def __init__(self, swallows: int = 0) -> None:
        super().__init__()
        self.swallows = swallows
        self.inside = 0
        self.overlapped = False

    async def __call__(self, events: Sequence[BillingEvent]) -> None:
        self.inside += 1
        self.overlapped |= self.inside > 1
        try:
            if not self.offered:
                self.offered.append([event.id for event in events])
                for _ in range(self.swallows):
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        await asyncio.sleep(0.01)
                if not self.swallows:
                    await asyncio.Event().wait()
                raise OSError("at last")
            await super().__call__(events)
        finally:
            self.inside -= 1


@pytest.mark.parametrize("swallows", [0, 1])
def test_a_sink_that_hangs_is_given_up_and_offered_again_and_offers_never_overlap(
    tmp_path: Path, swallows: int
) -> None:
    sink = Hanging(swallows)
    deliver(tmp_path / "a.db", sink, EVENTS[:3], offer_timeout_s=0.05)
    assert [event.id for event in sink.taken] == IDS[:3]
    assert not sink.overlapped


@pytest.mark.parametrize(
    "failure",
    [
        asyncio.CancelledError(),
        SystemExit(3),
        GeneratorExit(),
        BaseExceptionGroup("group", [asyncio.CancelledError()]),
        ExceptionGroup("group", [OSError("away")]),
        TimeoutError(),
        StopAsyncIteration(),
    ],
    ids=repr,
)
def test_whatever_a_sink_raises_it_is_offered_again(tmp_path: Path, failure: BaseException) -> None:
    sink = Taking(failure)
    deliver(tmp_path / "a.db", sink, EVENTS[:2])
    assert sink.offered[0] == IDS[:2]
    assert [event.id for event in sink.taken] == IDS[:2]


def test_a_function_that_is_not_async_is_told_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        async with relaying(tmp_path / "a.db", {"mine": lambda _: None}) as (ledger, _):
            await ledger.settle(EVENTS[0])
            await until(lambda: "a sink is an async function" in caplog.text)

    asyncio.run(go())


def test_a_reason_from_the_far_end_is_kept_storable_and_short(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    long = "x" * 10 * REASON_CHARACTERS_MAX
    deliver(path, Taking(Rejected({IDS[0]: "\ud800", IDS[1]: long, IDS[2]: ""})), EVENTS[:3])
    assert dead_letters(path) == [
        ("mine", IDS[0], "?"),
        ("mine", IDS[1], long[:REASON_CHARACTERS_MAX]),
        ("mine", IDS[2], "no reason given"),
    ]


def test_a_server_that_ends_cancels_an_offer_and_closes_its_sinks(tmp_path: Path) -> None:
    class Open(Hanging):
        closed = False

        async def aclose(self) -> None:
            assert self.inside == 0
            self.closed = True

    class Stubborn(Taking):
        async def aclose(self) -> None:
            raise OSError("still busy")

    sink = Open()

    async def go() -> None:
        sinks = {"bad": Stubborn(), "mine": sink}
        async with relaying(tmp_path / "a.db", sinks) as (ledger, _):
            await ledger.settle(EVENTS[0])
            await until(lambda: sink.inside == 1)

    asyncio.run(go())
    assert sink.closed


def test_a_ledger_that_fails_is_not_blamed_on_the_sink_and_a_drain_ends_quietly(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Taking()

    class Failing(SqliteLedger):
        fails = True

        async def pending(self, sink: str, count_max: int) -> Any:
            if self.fails:
                raise OSError("no disk")
            return await super().pending(sink, count_max)

    async def go() -> None:
        ledger = Failing(tmp_path / "a.db")
        relay = Relay(ledger, {"mine": sink}, sleep=Slept())
        relay.start()
        await ledger.settle(EVENTS[0])
        await until(lambda: "wait for the ledger" in caplog.text)
        await relay.drain(DRAIN_S)
        ledger.fails = False
        await relay.drain(DRAIN_S)
        await relay.aclose()
        await ledger.aclose()

    caplog.set_level(logging.WARNING)
    asyncio.run(go())
    assert "did not take" not in caplog.text
    assert [event.id for event in sink.taken] == IDS[:1]


@settings(deadline=None)
@given(
    size=st.integers(1, 6),
    taken=st.sets(st.integers(0, 7)),
    rejected=st.sets(st.integers(0, 7)),
)
def test_a_verdict_covers_just_the_beginning_that_was_dealt_with(
    size: int, taken: set[int], rejected: set[int]
) -> None:
    async def sink(events: Sequence[BillingEvent]) -> None:
        raise TryLater("", taken=[IDS[n] for n in taken], rejected={IDS[n]: "no" for n in rejected})

    verdict = asyncio.run(offer("mine", sink, EVENTS[:size]))
    assert all(n in taken | rejected for n in range(verdict.done))
    assert verdict.done == size or verdict.done not in taken | rejected
    assert verdict.rejected.keys() == {IDS[n] for n in rejected if n < verdict.done}
    assert (verdict.failure is None) == (verdict.done == size)
