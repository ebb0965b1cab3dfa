"""The wall clock of a running server is moved: no slot, no key and no bill goes by it."""

import asyncio
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_restarts import SLOTS, UVICORN, Shop
from tests.redis_servers import RedisServer, redis_server

# A move is far longer than what any machine makes of it.
HOUR = timedelta(hours=1)
NEAR = timedelta(minutes=10)

# A machine may stand still for a second or two, which would be a fault of its own.
LEASE_S = 4.5
HOLD_S = 12


class MovedClock:
    """The wall clock of a process that was started with `environment`; the monotonic one stays.

    It is libfaketime's. Python's own `time.sleep` fails under it, which a server of one worker
    does not use.
    """

    def __init__(self, place: Path) -> None:
        self._place = place
        self.move(timedelta())
        # The program prints what it would preload for a process that it starts.
        command = ["faketime", "-f", "+0", "env"]
        whole = subprocess.run(command, check=True, capture_output=True, text=True)
        told = dict(line.split("=", 1) for line in whole.stdout.splitlines() if "=" in line)
        self.environment = {
            "LD_PRELOAD": told["LD_PRELOAD"],
            "FAKETIME_TIMESTAMP_FILE": str(place),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",  # its name in older versions
            "NO_FAKE_STAT": "1",
        }

    def move(self, by: timedelta) -> None:
        """Let it differ from the machine's by so much."""
        new = self._place.with_suffix(".new")
        new.write_text(f"{by.total_seconds():+.0f}\n", "ascii")
        new.replace(self._place)  # read at any moment: never half of it


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def settled(bills: list[dict[str, Any]]) -> list[timedelta]:
    """By how much each bill was dated otherwise than by the machine's clock."""
    now = datetime.now(UTC)
    return [datetime.fromisoformat(bill["settled_at"]) - now for bill in bills]


@pytest.mark.parametrize("by", [HOUR, -HOUR], ids=["an hour forward", "an hour back"])
def test_a_clock_that_is_moved_under_running_calls_costs_no_slot_no_key_and_no_bill(
    by: timedelta, redis: RedisServer, tmp_path: Path
) -> None:
    clock = MovedClock(tmp_path / "clock")
    shop = Shop(redis, tmp_path, UVICORN, clock.environment, lease_s=LEASE_S)

    async def go() -> None:
        await shop.ask()
        async with asyncio.TaskGroup() as group:
            for number in range(SLOTS):
                group.create_task(shop.ask(key=f"key {number}", hold_s=HOLD_S))
            await shop.until_running(SLOTS)
            clock.move(by)
            # Beyond a lease, by the clock that counts: all slots are still theirs, and their keys.
            await asyncio.sleep(LEASE_S + 1)
            await shop.ask()
            await shop.ask(key="key 0", hold_s=HOLD_S)
            assert shop.statuses == [200, 429, 409], shop.process.said()
        assert shop.statuses == [200, 429, 409] + [200] * SLOTS
        clock.move(timedelta())
        await shop.ask(key="key 1", hold_s=HOLD_S)
        await asyncio.gather(*(shop.ask(hold_s=1) for _ in range(SLOTS)))
        assert shop.statuses[3 + SLOTS :] == [409] + [200] * SLOTS

    try:
        asyncio.run(go())
        shop.wait_for_deliveries()
        # A bill is dated by the clock as it was at its end, and stands in the order of ends.
        first, *moved = settled(shop.usage())
        late = moved[SLOTS:]
        assert abs(first) < NEAR
        assert all(abs(differs - by) < NEAR for differs in moved[:SLOTS])
        assert len(late) == SLOTS
        assert all(abs(differs) < NEAR for differs in late)
        shop.check()
    finally:
        shop.process.stop()
