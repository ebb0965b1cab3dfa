"""The last thirty days of an account: exact, in the zone of reports, seldom read."""

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime, tzinfo
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from inf_middleware import Usage
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.domain.ids import uuid7
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.routes import usage as reports
from inf_middleware.routes.usage import Sums, Usages, Whose, most_used
from tests.events import event_of
from tests.kit import Clock

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


class Counting(SqliteLedger):
    """A ledger that counts how often it is read."""

    reads = 0

    async def read(self, work: Any) -> Any:
        self.reads += 1
        return await super().read(work)


class Desk:
    """A ledger and its reports, on a clock that the test moves."""

    def __init__(self, path: Path, zone: tzinfo = UTC) -> None:
        self.ledger = Counting(path)
        self.clock = Clock()
        self.today = NOW
        self.usages = Usages(clock=self.clock, now=self._now)
        self.whose = Whose(self.ledger, "acme", "CNY", zone)

    def _now(self, zone: tzinfo) -> datetime:
        return self.today.astimezone(zone)

    async def bill(self, *moments: str, **fields: Any) -> None:
        for moment in moments:
            number = int(datetime.fromisoformat(moment).timestamp())
            await self.ledger.settle(
                event_of(
                    **{
                        "request_id": uuid7(number * 1_000_000_000),
                        "started_at": moment,
                        "settled_at": moment,
                        "usage": Usage(100, 10),
                        **fields,
                    }
                )
            )

    async def usage(self) -> reports.Usage:
        return await self.usages.of(self.whose)

    async def days(self) -> dict[date, int]:
        return {day: sums.requests for day, sums in (await self.usage()).by_day if sums.requests}


Opened = Callable[..., Desk]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return lambda **options: Desk(tmp_path / "l.db", **options)


def run(story: Any) -> Any:
    async def go() -> Any:
        return await story

    return asyncio.run(go())


def test_the_last_thirty_days_are_shown_and_none_before(opened: Opened) -> None:
    desk = opened()

    async def go() -> None:
        await desk.bill(
            "2026-10-25T23:59:59.999999Z",
            "2026-10-26T00:00:00.000000Z",
            "2026-11-23T23:59:59.999999Z",
            "2026-11-24T00:00:00.000000Z",
        )
        await desk.bill("2026-11-24T01:00:00.000000Z", account="umbrella")
        assert await desk.days() == {
            date(2026, 10, 26): 1,
            date(2026, 11, 23): 1,
            date(2026, 11, 24): 1,
        }
        await desk.ledger.aclose()

    run(go())


def test_days_are_those_of_the_zone(opened: Opened) -> None:
    desk = opened(zone=ZoneInfo("Asia/Shanghai"))

    async def go() -> None:
        await desk.bill("2026-11-23T15:59:59.999999Z", "2026-11-23T16:00:00.000000Z")
        assert await desk.days() == {date(2026, 11, 23): 1, date(2026, 11, 24): 1}
        await desk.ledger.aclose()

    run(go())


def test_credits_are_taken_off_what_their_model_cost(opened: Opened) -> None:
    desk = opened()

    async def go() -> None:
        event = event_of(usage=Usage(100, 10), settled_at="2026-11-24T01:00:00.000000Z")
        await desk.ledger.settle(event)
        now_ns = int(NOW.timestamp()) * 1_000_000_000
        async with LedgerBook(desk.ledger, now_ns=lambda: now_ns) as book:
            await book.credit(event.id, "0.0002")
            usage = await desk.usage()
        assert usage.total == Sums(1, 100, 10, 1_200_000 - 200_000)
        assert dict(usage.by_model) == {"inf-chat-v1": usage.total}

    run(go())


def test_who_asks_often_reads_seldom_and_past_days_seldomer(opened: Opened) -> None:
    desk = opened()

    async def go() -> list[int]:
        await desk.bill("2026-11-20T00:00:00.000000Z")
        found = []
        for wait_s in (0.0, 0.9, reports.FRESH_S, reports.PAST_S):
            desk.clock.now += wait_s
            before = desk.ledger.reads
            for _ in range(10):
                await desk.usage()
            found.append(desk.ledger.reads - before)
        await desk.ledger.aclose()
        return found

    assert run(go()) == [30, 0, 1, 30]


def test_many_who_ask_at_once_wait_for_one_reading(opened: Opened) -> None:
    desk = opened()

    async def go() -> int:
        await desk.bill("2026-11-20T00:00:00.000000Z")
        found = await asyncio.gather(*[desk.usage() for _ in range(20)])
        assert len(set(map(id, found))) == 1
        await desk.ledger.aclose()
        return desk.ledger.reads

    assert run(go()) == 30


def test_who_leaves_takes_the_report_from_nobody(opened: Opened) -> None:
    desk = opened()

    async def go() -> None:
        await desk.bill("2026-11-20T00:00:00.000000Z")
        leaves, stays = (asyncio.create_task(desk.usage()) for _ in range(2))
        await asyncio.sleep(0)
        leaves.cancel()
        assert (await stays).total.requests == 1
        await desk.ledger.aclose()

    run(go())


def test_a_new_day_is_today_and_yesterday_is_read_once_more(opened: Opened) -> None:
    desk = opened()

    async def go() -> None:
        await desk.usage()
        await desk.bill("2026-11-24T23:00:00.000000Z", "2026-11-25T00:10:00.000000Z")
        desk.today = datetime(2026, 11, 25, 0, 20, tzinfo=UTC)
        desk.clock.now += reports.FRESH_S
        assert await desk.days() == {date(2026, 11, 24): 1, date(2026, 11, 25): 1}
        await desk.ledger.aclose()

    run(go())


def test_a_report_that_takes_long_is_believed_for_longer(opened: Opened) -> None:
    desk = opened()

    async def go() -> list[int]:
        await desk.bill("2026-11-20T00:00:00.000000Z")
        step = desk.ledger.read

        async def slowly(work: Any) -> Any:
            desk.clock.now += 0.1
            return await step(work)

        slow = Whose(Slow(desk.ledger, slowly), "acme", "CNY", UTC)  # type: ignore[arg-type]
        await desk.usages.of(slow)  # each day took 0.1 s
        found = []
        for wait_s in (1.9, 0.2):
            desk.clock.now += wait_s
            before = desk.ledger.reads
            await desk.usages.of(slow)
            found.append(desk.ledger.reads - before)
        await desk.ledger.aclose()
        return found

    assert run(go()) == [0, 1]


class Slow:
    """A ledger whose reads take time on the test's clock."""

    def __init__(self, ledger: SqliteLedger, read: Any) -> None:
        self.ledger = ledger
        self.read = read


def test_what_is_remembered_is_bounded(opened: Opened) -> None:
    desk = opened()

    async def go() -> None:
        await desk.bill("2026-11-20T00:00:00.000000Z")
        usages = Usages(clock=desk.clock, now=lambda zone: NOW, accounts_max=3)
        for number in range(5):
            await usages.of(Whose(desk.ledger, f"account-{number}", "CNY", UTC))
        assert len(usages) == 3
        await desk.ledger.aclose()

    run(go())


def test_models_beyond_a_bound_are_one(opened: Opened) -> None:
    desk = opened()
    count = reports.MODELS_MAX + 5

    async def go() -> reports.Usage:
        for number in range(count):
            moment = f"2026-11-24T01:{number // 60:02}:{number % 60:02}.000000Z"
            await desk.bill(moment, model=f"model-{number}")
        usage = await desk.usage()
        await desk.ledger.aclose()
        return usage

    usage = run(go())
    assert len(usage.by_model) == reports.MODELS_MAX + 1
    assert usage.total.requests == count
    shown = most_used(usage, 8)
    assert len(shown) == 9
    assert sum(sums.requests for _, sums in shown) == count


def test_a_ledger_that_cannot_be_read_is_asked_again(opened: Opened, tmp_path: Path) -> None:
    desk = opened()

    async def go() -> None:
        (tmp_path / "l.db").write_text("no ledger" * 1000)
        for _ in range(2):
            with pytest.raises(LedgerUnavailable):
                await desk.usage()
        (tmp_path / "l.db").unlink()
        await desk.bill("2026-11-24T01:00:00.000000Z")
        assert (await desk.usage()).total.requests == 1
        await desk.ledger.aclose()

    run(go())
