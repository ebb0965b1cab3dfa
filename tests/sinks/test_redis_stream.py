"""The Redis sink against a real redis-server: all of a batch or nothing, and who is told what."""

import asyncio
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis

from inf_middleware import ConfigError
from inf_middleware.ports import TryLater
from inf_middleware.sinks.redis_stream import RedisStreamSink
from tests.sinks.far_ends import Stream
from tests.sinks.kit import DRAIN_S, EVENTS, IDS, dead_letters, relaying, until
from tests.sinks.redis_server import RedisServer
from tests.tcp_proxy import proxying


def append(sink: RedisStreamSink, count: int) -> None:
    async def go() -> None:
        try:
            await sink(EVENTS[:count])
        finally:
            await sink.aclose()

    asyncio.run(go())


def test_a_batch_is_one_transaction_with_the_ids_of_its_events(redis_server: RedisServer) -> None:
    far_end = Stream(redis_server, uuid4().hex)
    append(RedisStreamSink(far_end.url, far_end.name), 100)
    with redis.Redis.from_url(far_end.url) as client:
        entries: Any = client.xrange(far_end.name)
        assert [fields[b"id"].decode() for _, fields in entries] == IDS[:100]
        stats: Any = client.info("commandstats")
    assert stats["cmdstat_exec"]["calls"] >= 1


def test_a_full_server_takes_nothing_of_a_batch_and_all_of_it_later(
    redis_server: RedisServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    far_end = Stream(redis_server, uuid4().hex)

    async def go() -> None:
        sinks = {"stream": RedisStreamSink(far_end.url, far_end.name)}
        async with relaying(tmp_path / "l.db", sinks) as (ledger, relay):
            await asyncio.gather(*(ledger.settle(event) for event in EVENTS[:50]))
            await until(lambda: "maxmemory" in caplog.text)
            assert far_end.arrived() == []
            await asyncio.to_thread(limit, far_end.url, 0)
            await relay.drain(DRAIN_S)

    limit(far_end.url, 1)
    try:
        asyncio.run(go())
    finally:
        limit(far_end.url, 0)
    assert far_end.arrived() == [event.encode() for event in EVENTS[:50]]
    assert dead_letters(tmp_path / "l.db") == []


def limit(url: str, bytes_max: int) -> None:
    with redis.Redis.from_url(url) as client:
        client.config_set("maxmemory", bytes_max)


def test_a_key_of_another_kind_is_held_and_said(redis_server: RedisServer) -> None:
    far_end = Stream(redis_server, uuid4().hex)
    with redis.Redis.from_url(far_end.url) as client:
        client.set(far_end.name, "a string")
    with pytest.raises(TryLater, match="WRONGTYPE") as caught:
        append(RedisStreamSink(far_end.url, far_end.name), 3)
    assert caught.value.not_taken


def test_a_name_that_moves_to_another_server_is_followed(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    other = RedisServer(tmp_path)
    name = uuid4().hex

    async def go() -> None:
        sink = RedisStreamSink(f"redis://localhost:{proxy.port}", name)
        try:
            await sink(EVENTS[:1])
            with redis.Redis(port=other.port) as client:
                client.execute_command("REPLICAOF", "localhost", redis_server.port)
            proxy.target_port = redis_server.port
            with pytest.raises(TryLater, match="read only") as caught:
                await sink(EVENTS[1:3])
            assert caught.value.not_taken
            await sink(EVENTS[1:3])
        finally:
            await sink.aclose()

    try:
        with proxying(other.port) as proxy:
            asyncio.run(go())
    finally:
        other.stop()
    assert Stream(redis_server, name).arrived() == [event.encode() for event in EVENTS[1:3]]


def test_a_bound_of_the_stream_is_kept_where_it_is_given(redis_server: RedisServer) -> None:
    far_end = Stream(redis_server, uuid4().hex)
    sink = RedisStreamSink.from_uri(f"{far_end.url}?stream={far_end.name}&length_max=100")
    for _ in range(6):
        append(sink, 100)
    assert 100 <= len(far_end.arrived()) < 300


def test_the_uri_keeps_what_the_client_knows() -> None:
    sink = RedisStreamSink.from_uri("rediss://u:p%40w@host:7000/3?stream=a%20b&protocol=3")
    assert repr(sink) == "RedisStreamSink('host:7000', 'a b')"
    assert RedisStreamSink.from_uri("unix:///run/redis.sock?stream=s")


@pytest.mark.parametrize(
    "uri",
    [
        "redis://localhost:6379",
        "redis://localhost:6379?stream=",
        "redis://localhost:port?stream=s",
        "redis://u:s3cr3t@localhost?stream=s&shoesize=5",
        "redis://u:s3cr3t@localhost?stream=s&length_max=0",
        "redis://u:s3cr3t@localhost?stream=s&length_max=many",
        "http://localhost?stream=s",
    ],
)
def test_a_uri_that_is_none_is_refused_in_words_and_without_its_secret(uri: str) -> None:
    with pytest.raises(ConfigError, match="must be") as caught:
        RedisStreamSink.from_uri(uri)
    assert "s3cr3t" not in str(caught.value)
