"""Connections of our own to a real server: each reply is that of its command, and none is left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from limits.storage import storage_from_string

from inf_middleware import Tier
from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Admission, Ask
from inf_middleware.stores.connections import Connections
from inf_middleware.stores.pipelines import IN_FLIGHT_MAX, PIPELINE_MAX
from inf_middleware.stores.redis import RedisStore
from tests.processes import wait_until
from tests.redis_servers import RedisServer, redis_server

WIDE = Tier("Wide", 10**4, 10**6, 10**9)


def ask(call: str) -> Ask:
    return Ask(call, "acme", WIDE.groups_for(None), 10)


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


class Watch:
    """Sees the connections of a server, but its own."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    @property
    def open(self) -> int:
        """How many there are."""
        return len(self._client.client_list()) - 1

    @property
    def opened(self) -> int:
        """How many were ever opened."""
        return int(self._client.info("stats")["total_connections_received"]) - 1


@contextlib.contextmanager
def watching(server: RedisServer, **more: Any) -> Iterator[Watch]:
    url = server.uri.replace("redis+unix", "unix")
    with contextlib.closing(redis.Redis.from_url(url, **more)) as client:
        watch = Watch(client)
        wait_until(lambda: watch.open == 0, "the connections of others are closed")
        yield watch


@contextlib.asynccontextmanager
async def connecting(uri: str) -> AsyncIterator[Connections]:
    # As a store opens it: with a time-out of its own redis-py may not hear that it is given up.
    options: dict[str, Any] = {"implementation": "redispy", "socket_timeout": None}
    storage = storage_from_string(f"async+{uri}", **options)
    connections = Connections.of(storage)
    assert connections is not None
    try:
        yield connections
    finally:
        await connections.aclose()


async def echo(connections: Connections, text: bytes) -> None:
    assert await connections.run([b"ECHO", text]) == text


@pytest.mark.parametrize("kind", [{}, {"tls": True}, {"unix": True}], ids=["tcp", "tls", "unix"])
def test_there_are_as_many_as_commands_were_under_way_at_once(kind: dict[str, bool]) -> None:
    async def go(uri: str, watch: Watch) -> None:
        before = watch.opened
        async with connecting(uri) as connections:
            await echo(connections, b"alone")
            assert watch.opened - before == 1
            for _ in range(5):
                await asyncio.gather(*[echo(connections, b"%d" % number) for number in range(3)])
            assert (watch.open, watch.opened - before) == (3, 3)
        wait_until(lambda: watch.open == 0, "what was opened is closed")

    with redis_server(**kind) as server, watching(server) as watch:
        asyncio.run(go(server.uri, watch))


def test_a_command_that_is_given_up_closes_its_connection(server: RedisServer) -> None:
    async def go(watch: Watch) -> None:
        before = watch.opened
        async with connecting(server.uri) as connections:
            waiting = asyncio.create_task(connections.run([b"BLPOP", b"given up", b"0"]))
            await asyncio.to_thread(wait_until, lambda: watch.open == 1, "it is asked")
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            await asyncio.to_thread(wait_until, lambda: watch.open == 0, "it is closed")
            assert await connections.run([b"RPUSH", b"given up", b"theirs"]) == 1
            await echo(connections, b"mine")
            assert watch.opened - before == 2

    with watching(server) as watch:
        asyncio.run(go(watch))


def test_whenever_a_command_is_given_up_the_next_gets_its_own_reply(server: RedisServer) -> None:
    async def go() -> None:
        async with connecting(server.uri) as connections:
            for number in range(60):
                # It has no reply for a while; so it is always on its way when it is given up.
                theirs = asyncio.create_task(connections.run([b"BLPOP", b"nothing", b"0.1"]))
                for _ in range(number % 6):
                    await asyncio.sleep(0)
                theirs.cancel()
                await asyncio.wait([theirs])
                assert theirs.cancelled()
                await echo(connections, b"mine %d" % number)

    asyncio.run(go())


def test_an_error_of_the_server_leaves_the_connection_as_it_is(server: RedisServer) -> None:
    async def go(watch: Watch) -> None:
        before = watch.opened
        async with connecting(server.uri) as connections:
            with pytest.raises(redis.ResponseError):
                await connections.run([b"EVALSHA", b"of nothing", b"0"])
            await echo(connections, b"mine")
            assert watch.opened - before == 1

    with watching(server) as watch:
        asyncio.run(go(watch))


def test_after_a_restart_all_are_opened_anew() -> None:
    async def go(server: RedisServer) -> None:
        store = RedisStore(server.uri, timeout_s=10.0)
        async with connecting(server.uri) as connections:
            await asyncio.gather(*[echo(connections, b"%d" % number) for number in range(3)])
            assert isinstance(await store.admit(ask("before")), Admission)
            await asyncio.to_thread(server.restart, keeps_data=False)
            for _ in range(3):  # each finds out once
                results = await asyncio.gather(
                    *[echo(connections, b"%d" % number) for number in range(3)],
                    return_exceptions=True,
                )
                assert all(one is None or isinstance(one, redis.ConnectionError) for one in results)
            assert results == [None] * 3
            # Who asks for limits does not: it is asked once more.
            assert isinstance(await store.admit(ask("after")), Admission)
        await store.aclose()

    with redis_server() as server:
        asyncio.run(go(server))


def test_a_password_and_a_database_of_the_uri_are_those_of_each_connection() -> None:
    async def go(place: str) -> None:
        async with connecting(f"redis://:open%20sesame@{place}/3") as connections:
            await connections.run([b"SET", b"who", b"mine"])
            await asyncio.gather(*[echo(connections, b"%d" % number) for number in range(3)])
            for _ in range(3):
                assert await connections.run([b"GET", b"who"]) == b"mine"
        for uri, error in (
            (f"redis://:wrong@{place}/3", redis.AuthenticationError),
            (f"redis://{place}/3", redis.AuthenticationError),
        ):
            async with connecting(uri) as connections:
                with pytest.raises(error):
                    await connections.run([b"GET", b"who"])
            store = RedisStore(uri, timeout_s=5.0)
            with pytest.raises(LimitsUnavailable):
                await store.admit(ask("of nobody"))
            await store.aclose()

    with redis_server() as server:
        with contextlib.closing(redis.Redis(port=server.port)) as client:
            client.config_set("requirepass", "open sesame")
            asyncio.run(go(f"127.0.0.1:{server.port}"))
        with contextlib.closing(
            redis.Redis(port=server.port, password="open sesame", db=3)
        ) as client:
            assert client.get("who") == b"mine"


def test_a_crowd_opens_no_more_than_may_be_in_flight_and_leaves_none(server: RedisServer) -> None:
    async def go(watch: Watch) -> None:
        before = watch.opened
        store = RedisStore(server.uri, timeout_s=10.0)
        crowd = 2 * IN_FLIGHT_MAX * PIPELINE_MAX
        admitted = await asyncio.gather(*[store.admit(ask(f"{n}")) for n in range(crowd)])
        assert all(isinstance(one, Admission) for one in admitted)
        assert 1 < watch.opened - before <= IN_FLIGHT_MAX
        settling = [store.settle(one, 1) for one in admitted if isinstance(one, Admission)]
        await store.aclose()  # what is under way ends before
        await asyncio.gather(*settling)
        wait_until(lambda: watch.open == 0, "what was opened is closed")

    with watching(server) as watch:
        asyncio.run(go(watch))


def test_a_storage_of_several_servers_is_asked_as_its_client_wishes() -> None:
    for uri in ("redis+cluster://localhost:1", "redis+sentinel://localhost:1/mymaster"):
        storage = storage_from_string(f"async+{uri}", implementation="redispy")
        assert Connections.of(storage) is None
