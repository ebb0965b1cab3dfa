"""Redis that changes under load: slots of a Cluster that move, a primary that dies."""

import asyncio
import contextlib
import time

import pytest

from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Admission, Ask
from inf_middleware.stores.memory import MemoryStore
from inf_middleware.stores.outage import OutageStore
from inf_middleware.stores.redis import RedisStore
from tests.faults.load import PATIENCE_S, SLOTS, TIER, under_load, until
from tests.redis_servers import (
    RedisCluster,
    RedisSentinels,
    RedisServer,
    redis_cluster,
    redis_sentinels,
    redis_server,
)
from tests.tcp_proxy import TcpProxy, proxying

ACCOUNTS = [f"account-{number}" for number in range(6)]


async def until_idle(store: OutageStore, account: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while (await store.read(account, TIER.groups_for(None)))[0].running:
        assert time.monotonic() < deadline, f"{account} still holds a slot"
        await asyncio.sleep(0.05)


def test_while_slots_of_a_cluster_move_nobody_is_let_in_twice_and_nothing_is_lost() -> None:
    async def go(cluster: RedisCluster) -> None:
        shared = RedisStore(cluster.uri, timeout_s=10.0)
        async with contextlib.aclosing(
            OutageStore(shared, MemoryStore(), policy="refuse")
        ) as store:
            async with under_load(store, ACCOUNTS) as load:
                slots = await asyncio.to_thread(cluster.slots_in_use)
                assert len(slots) >= len(ACCOUNTS)
                # All of them to the next node, and on to the one after it.
                for _ in range(2):
                    for slot in slots:
                        await asyncio.to_thread(cluster.move, slot)
                    await load.more(3)
            assert store.outages == 0
            assert load.most == SLOTS
            assert load.refused > 0
            for account in ACCOUNTS:
                (group,) = await shared.show(account)
                used = {(one.metric, one.window_s): one.used for one in group.windows}
                assert used == {
                    ("requests", 60.0): load.admitted[account],
                    ("tokens", 60.0): 10 * load.admitted[account],
                }
                assert group.running == 0

    with redis_cluster() as cluster:
        asyncio.run(go(cluster))


def test_who_is_sent_around_while_a_slot_moves_is_answered_when_it_has_a_node() -> None:
    async def go(cluster: RedisCluster) -> None:
        async with contextlib.aclosing(RedisStore(cluster.uri, timeout_s=PATIENCE_S)) as store:
            source, target, slot = await half_moved(cluster, store)
            owner = source.ask("CLUSTER MYID")
            admitting = asyncio.create_task(store.admit(asked("meanwhile")))
            # A client gives up after 16 answers, of which 8 are the source's.
            enough = 5 * 8
            await until(lambda: times_sent_on(source) > enough, f"{enough} times sent on")
            assert not admitting.done()
            await asyncio.to_thread(target.ask, "CLUSTER SETSLOT", slot, "IMPORTING", owner)
            assert isinstance(await admitting, Admission)

    with redis_cluster() as cluster:
        asyncio.run(go(cluster))


def test_of_a_move_that_does_not_end_the_operator_reads_that_nodes_send_around() -> None:
    async def go(cluster: RedisCluster) -> None:
        async with contextlib.aclosing(RedisStore(cluster.uri, timeout_s=1.0)) as store:
            await half_moved(cluster, store)
            with pytest.raises(LimitsUnavailable, match="TTL exhausted"):
                await store.admit(asked("meanwhile"))

    with redis_cluster() as cluster:
        asyncio.run(go(cluster))


async def half_moved(
    cluster: RedisCluster, store: RedisStore
) -> tuple[RedisServer, RedisServer, int]:
    """Begin to move the account's slot; return from where, to where, and which it is.

    The source sends to the target, and the target, which does not know of it, back.
    """
    assert isinstance(await store.admit(asked("before")), Admission)
    (slot,) = await asyncio.to_thread(cluster.slots_in_use)
    source, target = await asyncio.to_thread(cluster.ends_of, slot)
    heir = target.ask("CLUSTER MYID")
    await asyncio.to_thread(source.ask, "DEL", *source.ask("KEYS", "*"))
    await asyncio.to_thread(source.ask, "CLUSTER SETSLOT", slot, "MIGRATING", heir)
    return source, target, slot


def asked(call: str) -> Ask:
    return Ask(call, "account", TIER.groups_for(None), 10)


def times_sent_on(node: RedisServer) -> int:
    """How often a node has answered that another may have the key."""
    found: dict[str, dict[str, int]] = node.ask("INFO", "errorstats")
    return found.get("errorstat_ASK", {}).get("count", 0)


@pytest.mark.parametrize("deaths", [1, 3], ids=["a node", "all nodes"])
def test_while_nodes_of_a_cluster_are_away_all_are_answered_and_it_comes_back(deaths: int) -> None:
    async def go(cluster: RedisCluster) -> None:
        async with going_on_alone(cluster.uri) as store:
            async with under_load(store, ACCOUNTS) as load:
                for node in cluster.nodes[:deaths]:
                    node.running.kill()
                await until(lambda: store.is_away, "it is noticed")
                await load.more(3)
                assert load.most <= 2 * SLOTS
                for node in cluster.nodes[:deaths]:
                    await asyncio.to_thread(node.start)
                await until(lambda: not store.is_away, "the store is back")
            for account in ACCOUNTS:
                await until_idle(store, account)

    with redis_cluster() as cluster:
        asyncio.run(go(cluster))


def test_while_a_primary_dies_all_are_answered_and_afterwards_the_limits_hold_again() -> None:
    async def go(sentinels: RedisSentinels) -> None:
        async with going_on_alone(sentinels.uri) as store:
            async with under_load(store, ACCOUNTS[:3]) as load:
                await asyncio.to_thread(sentinels.fail_over)
                await load.more(3)
                # Once more, by the share of this process, where the storage was away or forgot.
                assert load.most <= 2 * SLOTS
                await until(lambda: not store.is_away, "the store is back")
            # What was lost with the primary holds a slot for no longer than its lease.
            for account in ACCOUNTS[:3]:
                await until_idle(store, account)
            async with under_load(store, ACCOUNTS[:3]) as load:
                await load.more(3)
            assert load.most == SLOTS
            assert load.refused > 0

    with redis_sentinels() as sentinels:
        asyncio.run(go(sentinels))


def going_on_alone(uri: str) -> contextlib.aclosing[OutageStore]:
    """A store that lets in its share while the storage is away; closed whatever happens."""
    shared = RedisStore(uri, lease_s=1.5, timeout_s=0.5)
    return contextlib.aclosing(OutageStore(shared, MemoryStore(lease_s=1.5), policy="local"))


async def at_once(store: OutageStore, name: TcpProxy) -> None:
    """Ask on several connections: each while the others wait for an answer."""
    name.delay_s = 0.05
    crowd = []
    for number in range(4):
        asked = Ask(f"{time.monotonic()}", f"of the crowd {number}", TIER.groups_for(None), 10)
        crowd.append(asyncio.create_task(store.admit(asked)))
        await asyncio.sleep(0.005)
    assert all(isinstance(answer, Admission) for answer in await asyncio.gather(*crowd))
    name.delay_s = 0.0


# In the place of clock.lua: a replica says what Redis before 7 says of a script that writes there.
BEFORE_7 = """
local function clock()
  if string.find(redis.call('INFO', 'replication'), 'role:slave', 1, true) then
    error("@user_script: 108: -READONLY You can't write against a read only replica.")
  end
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
"""


@pytest.mark.parametrize(
    ("tells_old_data", "clock"),
    [("yes", None), ("no", None), ("yes", BEFORE_7)],
    ids=["yes", "no", "yes, before 7"],
)
def test_a_name_that_moves_to_another_server_is_followed_though_old_connections_stay(
    tells_old_data: str, clock: str | None
) -> None:
    async def go(first: RedisServer, second: RedisServer, name: TcpProxy) -> None:
        def give_way(one: RedisServer, other: RedisServer) -> None:
            other.ask("REPLICAOF", "NO", "ONE")
            # It answers READONLY to a script that writes, or MASTERDOWN.
            one.ask("CONFIG", "SET", "replica-serve-stale-data", tells_old_data)
            one.ask("REPLICAOF", "127.0.0.1", 1)

        shared = RedisStore(f"redis://127.0.0.1:{name.port}", timeout_s=5.0, clock=clock)
        async with contextlib.aclosing(
            OutageStore(shared, MemoryStore(), policy="refuse")
        ) as store:
            await at_once(store, name)
            assert first.ask("INFO", "clients")["connected_clients"] > 2
            give_way(first, second)
            with pytest.raises(LimitsUnavailable):
                await store.admit(Ask("before it moves", "acme", TIER.groups_for(None), 10))
            name.target_port = second.port
            await until(lambda: not store.is_away, "the store is back")
            await at_once(store, name)
            assert store.outages == 1
            # Where it moves at once nobody notices.
            give_way(second, first)
            name.target_port = first.port
            await at_once(store, name)
            assert store.outages == 1

    with redis_server() as first, redis_server() as second, proxying(first.port) as name:
        asyncio.run(go(first, second, name))
