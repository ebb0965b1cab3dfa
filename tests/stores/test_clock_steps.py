"""A server's clock that is set back: time goes on for every account, and nothing leaves early."""

import asyncio
from collections.abc import Iterator

import pytest
import redis

from inf_middleware import Tier
from tests.redis_servers import RedisServer
from tests.stores.backends import LEASE_S, Driver, OnRedis

TIER = Tier("T", 2, 5, 1_000, tokens=["2000/hour"], models={"m": {"tokens_per_minute": 500}})

# A server whose clock was taken for that of another zone, until it asked a time server.
HOURS_S = 8 * 3_600.0
BEFORE_S = 1_800_000_000.0


@pytest.fixture
def driver(server: RedisServer, client: redis.Redis, runner: asyncio.Runner) -> Iterator[Driver]:
    driver = Driver(OnRedis(server.uri, client), runner)
    driver.now = BEFORE_S + 0.25
    yield driver
    driver.run(driver.store.aclose())


@pytest.mark.parametrize("back_s", [HOURS_S, HOURS_S + 59.999, 60.0, 3_600.0 * 24 * 365])
def test_what_was_admitted_before_it_leaves_as_told_and_at_most_a_minute_later(
    driver: Driver, back_s: float
) -> None:
    for _ in range(5):
        driver.settle(driver.admitted(TIER, 200), 200)
        driver.now += 0.3
    driver.now -= back_s
    began = driver.now
    refusal = driver.refused(TIER, 10)
    assert (refusal.used, refusal.limit) == (5, 5)
    assert 58.0 < refusal.retry_after_s <= 60.0
    driver.now = began + refusal.retry_after_s - 0.000_001
    assert driver.refused(TIER, 10).used == 5
    driver.now = began + refusal.retry_after_s + 60.0
    driver.admitted(TIER, 10)
    # The hour, too, remembers.
    assert driver.refused(TIER, 1_000).window_s == 3_600.0


def test_requests_that_run_keep_their_slots_and_those_of_the_dead_come_back(
    driver: Driver,
) -> None:
    runs, of_the_dead = driver.admitted(TIER, 100), driver.admitted(TIER, 100, model="m")
    driver.renew((runs, 10), (of_the_dead, 10))
    driver.now -= HOURS_S
    assert driver.refused(TIER, 100, model="m").code == "concurrency_limit_exceeded"
    driver.now += LEASE_S - 10.0
    assert driver.renew((runs, 20)) == frozenset()
    driver.now += 10.0
    assert driver.admitted(TIER, 100).standings.concurrency.remaining == 0
    # What the dead did not use, and what is not used now, is given back to when it was taken.
    assert driver.admitted(TIER, 0, model="m", enforce=False).standings.tokens.remaining == 490
    driver.settle(runs, 30)
    own = driver.admitted(TIER, 0, enforce=False).standings
    assert (own.tokens.remaining, own.concurrency.remaining) == (870, 0)


def test_processes_that_have_died_before_it_are_counted_no_longer_than_a_lease(
    server: RedisServer, client: redis.Redis, runner: asyncio.Runner
) -> None:
    backend = OnRedis(server.uri, client)
    dead, alive = backend.store, backend.another()
    backend.move_to(BEFORE_S)
    for store in (dead, alive):
        runner.run(store.ping())
    assert alive.workers == 2
    backend.move_to(BEFORE_S - HOURS_S)
    runner.run(alive.ping())
    assert alive.workers == 1
    for store in (dead, alive):
        runner.run(store.aclose())


def test_a_lease_that_was_lost_before_it_is_settled_once_after_it(driver: Driver) -> None:
    lost = driver.admitted(TIER, 300)
    driver.now += LEASE_S
    driver.settle(driver.admitted(TIER, 100), 100)
    driver.now -= HOURS_S
    driver.settle(lost, 50)
    driver.settle(lost, 50)
    assert driver.admitted(TIER, 0).standings.tokens.remaining == 850
