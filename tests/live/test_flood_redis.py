"""Many workers on one Redis, flooded: never over, well used, and nothing leaks when they die."""

import asyncio
import os
import signal
import time

from tests.live.flood import SHARE_MIN_BUSY, Flood, flooding
from tests.redis_servers import redis_server

# Four workers of one server and two servers of their own, as on three hosts.
WORKERS = [4, 1, 1]

# In these tests Redis is never away, and no slow moment of a small machine is taken for it.
STRICT = {"on_storage_error": "refuse", "storage_timeout_s": 5.0}

WINDOW_S = 5
# Above the window: what a killed request reserved counts at least as long as the log says so.
LEASE_S = 6


def test_no_limit_is_exceeded_by_many_workers_and_each_is_used() -> None:
    with (
        redis_server() as redis,
        flooding(redis.uri, workers=WORKERS, window_s=WINDOW_S, options=STRICT) as flood,
    ):
        asyncio.run(flood.run(30))
        report = flood.report()
    assert not report.over, report
    assert not report.wasted(SHARE_MIN_BUSY), report
    assert report.statuses == {"200", "429"}, report


async def kill_at_random(flood: Flood) -> None:
    """Kill -9 a worker about every second; each comes back, as a supervisor would see to."""
    while True:
        await asyncio.sleep(flood.rng.uniform(0.5, 1.5))
        server = flood.rng.choice(flood.servers)
        alive = server.pids()
        if not alive:  # all of them were killed a moment ago
            continue
        pid = flood.rng.choice(alive)
        os.kill(pid, signal.SIGKILL)
        flood.killed[pid] = time.monotonic()
        if server.workers == 1:
            server.running.kill()
            server.start()


def test_killed_workers_give_everything_back_within_the_lease_and_nothing_twice() -> None:
    options = {**STRICT, "lease_s": LEASE_S}
    with (
        redis_server() as redis,
        flooding(redis.uri, workers=WORKERS, window_s=WINDOW_S, options=options) as flood,
    ):
        asyncio.run(flood.run(12, lambda: kill_at_random(flood)))
        report = flood.report()
        assert len(flood.killed) >= 5
        assert not report.over, report
        assert report.statuses <= {"200", "429", "lost:"}, report

        async def rest() -> list[str]:
            # The last one killed may just have renewed; a slot of the window adds 1/120 of it.
            await asyncio.sleep(LEASE_S + WINDOW_S * 1.01)
            for server in flood.servers:
                server.wait()
            return await flood.cannot_use()

        assert asyncio.run(rest()) == []
        report = flood.report()
        assert not report.over, report
