"""Redis at its `maxmemory`: without eviction an outage, with it what was counted is lost."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Admission, Ask, Held, Refusal
from inf_middleware.stores.memory import MemoryStore
from inf_middleware.stores.outage import OutagePolicy, OutageStore
from inf_middleware.stores.redis import RedisStore
from tests.faults.load import SLOTS, TIER, until
from tests.redis_servers import RedisServer, redis_server

# What a server has left: far more than one account takes, soon used up by what others write.
_LEFT_BYTES = 1_000_000
_FILLER_BYTES = 50_000
_FILLERS_MAX = 2_000


@contextlib.asynccontextmanager
async def store_at(server: RedisServer, policy: OutagePolicy) -> AsyncIterator[OutageStore]:
    store = OutageStore(RedisStore(server.uri, timeout_s=5.0), MemoryStore(), policy=policy)
    try:
        yield store
    finally:
        await store.aclose()


def ask(call: str) -> Ask:
    return Ask(call, "acme", TIER.groups_for(None), 10)


def limit_memory(server: RedisServer, policy: str, left_bytes: int) -> None:
    used = server.ask("INFO", "memory")["used_memory"]
    server.ask("CONFIG", "SET", "maxmemory-policy", policy)
    server.ask("CONFIG", "SET", "maxmemory", max(used + left_bytes, 1))


@pytest.mark.parametrize("policy", ["local", "refuse"])
def test_a_full_server_without_eviction_is_an_outage_and_comes_back_when_it_has_room(
    policy: OutagePolicy, caplog: pytest.LogCaptureFixture
) -> None:
    async def go(server: RedisServer) -> None:
        async with store_at(server, policy) as store:
            before = await store.admit(ask("before"))
            assert isinstance(before, Admission)
            limit_memory(server, "noeviction", -_LEFT_BYTES // 2)
            if policy == "refuse":
                with pytest.raises(LimitsUnavailable, match="maxmemory"):
                    await store.admit(ask("full"))
            else:
                assert isinstance(await store.admit(ask("full")), Admission)
                assert isinstance(await store.admit(ask("over")), Refusal)
            assert store.is_away
            # What ends meanwhile is owed to the server, and not forgotten.
            await store.settle(before, 7)
            server.ask("CONFIG", "SET", "maxmemory", 0)
            await until(lambda: not store.is_away, "the store is back")
            (group,) = await store.read("acme", TIER.groups_for(None))
            assert group.running == (1 if policy == "local" else 0)
            assert store.outages == 1

    with redis_server() as server:
        asyncio.run(go(server))
    lines = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(lines) == 1
    assert "maxmemory" in lines[0].getMessage()


def test_what_a_server_evicts_is_forgotten_and_nothing_else_happens() -> None:
    async def go(server: RedisServer) -> None:
        async with store_at(server, "refuse") as store:
            running = [await store.admit(ask(f"running {number}")) for number in range(SLOTS)]
            assert isinstance(await store.admit(ask("over")), Refusal)
            limit_memory(server, "allkeys-lru", _LEFT_BYTES)
            for number in range(_FILLERS_MAX):
                if not server.ask("KEYS", "inf1:*"):
                    break
                server.ask("SET", f"filler {number}", "x" * _FILLER_BYTES)
            assert not server.ask("KEYS", "inf1:*")
            held = [Held(one, 5) for one in running if isinstance(one, Admission)]
            assert await store.renew(held) == {f"running {number}" for number in range(SLOTS)}
            # At most once more the limit, and what ran before frees nothing of it.
            again = [await store.admit(ask(f"again {number}")) for number in range(SLOTS + 1)]
            assert [isinstance(one, Admission) for one in again] == [True] * SLOTS + [False]
            for admission, used in held:
                await store.settle(admission, used)
            assert isinstance(await store.admit(ask("next")), Refusal)
            assert store.outages == 0

    with redis_server() as server:
        asyncio.run(go(server))
