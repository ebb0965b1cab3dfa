"""Far ends for tests of sinks."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.sinks.far_ends import FarEnd, File, Function, HttpServer, Stream, http_server
from tests.sinks.redis_server import RedisServer


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    yield server
    server.stop()


@pytest.fixture
def http() -> Iterator[HttpServer]:
    with http_server() as server:
        yield server


@pytest.fixture(params=["function", "jsonl", "http", "redis"])
def far_end(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FarEnd]:
    if request.param == "function":
        yield Function()
    elif request.param == "jsonl":
        yield File(tmp_path)
    elif request.param == "http":
        yield request.getfixturevalue("http")
    else:
        yield Stream(request.getfixturevalue("redis_server"), uuid4().hex)
