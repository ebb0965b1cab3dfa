"""What is not ours at our keys in Redis: it costs its account what was counted, and nobody else."""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from inf_middleware import Tier
from inf_middleware.domain.limits import Admission, Ask, Held, Refusal
from inf_middleware.stores.memory import MemoryStore
from inf_middleware.stores.outage import OutagePolicy, OutageStore
from inf_middleware.stores.redis import RedisStore
from tests.redis_servers import RedisServer, redis_server

TIER = Tier("T", 2, 100, 100_000, models={"own-*": {"tokens_per_minute": 1_000}})

# Commands that put a value of another kind, or of another's making, at a key.
FOREIGN: dict[str, list[Any]] = {
    "a list": ["RPUSH", "{key}", "x"],
    "a hash": ["HSET", "{key}", "a", "b"],
    "a set": ["SADD", "{key}", "x"],
    "a sorted set": ["ZADD", "{key}", 1, "x"],
    "a stream": ["XADD", "{key}", "*", "a", "b"],
    "a number": ["SET", "{key}", 7],
    "an empty text": ["SET", "{key}", ""],
    "a text": ["SET", "{key}", "no state of ours, and longer than its header"],
    "ones": ["SET", "{key}", b"\xff" * 200],
    "zeros": ["SET", "{key}", b"\0" * 200],
}

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.uri) as client:
        yield client


class Rig:
    """A store as a stack has it, and what lies at its keys."""

    def __init__(self, store: OutageStore, shared: RedisStore, prefix: str) -> None:
        self.store = store
        self.shared = shared
        self.prefix = prefix

    async def admitted(self, call: str, account: str = "acme") -> Admission:
        answer = await self.store.admit(ask(call, account))
        assert isinstance(answer, Admission), answer
        return answer


def ask(call: str, account: str = "acme") -> Ask:
    return Ask(call, account, TIER.groups_for("own-1"), 10)


@contextlib.asynccontextmanager
async def rig(server: RedisServer, policy: OutagePolicy) -> AsyncIterator[Rig]:
    deployment = f"damaged-{next(_numbers)}"
    shared = RedisStore(server.uri, deployment=deployment, timeout_s=5.0)
    store = OutageStore(shared, MemoryStore(), policy=policy)
    try:
        yield Rig(store, shared, f"inf1:{deployment}:")
    finally:
        await store.aclose()


def damage(client: redis.Redis, key: bytes, command: list[Any]) -> None:
    client.delete(key)
    client.execute_command(*(key if part == "{key}" else part for part in command))


@pytest.mark.parametrize("what", FOREIGN)
def test_it_is_replaced_and_said_once_and_the_limits_hold_again(
    what: str, server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        # The policy that would refuse everybody, were this taken for an outage.
        async with rig(server, "refuse") as made:
            await made.store.settle(await made.admitted("before"), 10)
            (key,) = client.keys(f"{made.prefix}*:")  # that of the limits for all models
            damage(client, key, FOREIGN[what])
            caplog.clear()
            first = await made.admitted("first")
            await made.admitted("second")
            refusal = await made.store.admit(ask("third"))
            assert isinstance(refusal, Refusal)
            assert refusal.code == "concurrency_limit_exceeded"
            assert [record.levelno for record in caplog.records] == [logging.WARNING]
            assert f"the key {key.decode()} " in caplog.text
            assert client.type(key) == b"string"
            assert client.pttl(key) > 0
            await made.store.settle(first, 10)
            await made.admitted("fourth")
            assert made.store.outages == 0

    asyncio.run(go())


def test_while_a_call_runs_it_costs_that_call_its_slot_and_no_other_account_anything(
    server: RedisServer, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        async with rig(server, "refuse") as made:
            running = await made.admitted("running")
            keys = client.keys(f"{made.prefix}*")
            other = await made.admitted("other", "beta")
            for key in keys:
                damage(client, key, FOREIGN["a list"])
            held = [Held(running, 5), Held(other, 5)]
            assert await made.store.renew(held) == {"running"}
            await made.store.settle(running, 10)
            await made.store.settle(other, 10)
            groups = TIER.groups_for("own-1")
            assert [one.running for one in await made.store.read("acme", groups)] == [0, 0]
            assert [group.running for group in await made.shared.show("acme")] == [0, 0]
            # Looking and telling replace nothing.
            assert {client.type(key) for key in keys} == {b"list"}
            assert made.store.outages == 0
            await made.admitted("next")
            assert {client.type(key) for key in keys} == {b"string"}

    asyncio.run(go())
    assert caplog.text.count("not ours") == 1


def test_the_processes_that_live_are_counted_anew(server: RedisServer, client: redis.Redis) -> None:
    async def go() -> None:
        async with rig(server, "refuse") as made:
            for name in ("a list", "a number"):
                damage(client, f"{made.prefix}workers".encode(), FOREIGN[name])
                await made.store.renew(())
                assert (made.shared.workers, made.store.outages) == (1, 0)

    asyncio.run(go())


@settings(max_examples=60)
@given(st.binary(max_size=120) | st.binary(min_size=23, max_size=23))
def test_no_bytes_at_a_key_are_an_error(
    server: RedisServer, client: redis.Redis, found: bytes
) -> None:
    async def go() -> None:
        async with rig(server, "refuse") as made:
            await made.admitted("first")
            for key in client.keys(f"{made.prefix}*"):
                client.set(key, found)
            await made.store.admit(ask("second"))
            await made.store.renew([Held(Admission(ask("second"), None), 5)])  # type: ignore[arg-type]
            await made.shared.release("acme")
            assert made.store.outages == 0

    asyncio.run(go())
