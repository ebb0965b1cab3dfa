"""One driver per kind of store; the Redis server is shared, its deployments are not."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
import redis

from tests.redis_servers import RedisServer, redis_server
from tests.stores.backends import Driver, InMemory, OnRedis


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.uri) as client:
        yield client


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(params=["memory", "redis"])
def new_driver(
    request: pytest.FixtureRequest, runner: asyncio.Runner
) -> Iterator[Callable[[], Driver]]:
    """Makes drivers, each with an empty store of its own."""
    made: list[Driver] = []

    def new() -> Driver:
        if request.param == "memory":
            driver = Driver(InMemory(), runner)
        else:
            server = request.getfixturevalue("server")
            driver = Driver(OnRedis(server.uri, request.getfixturevalue("client")), runner)
        made.append(driver)
        return driver

    yield new
    for driver in made:
        driver.run(driver.store.aclose())


@pytest.fixture
def driver(new_driver: Callable[[], Driver]) -> Driver:
    return new_driver()
