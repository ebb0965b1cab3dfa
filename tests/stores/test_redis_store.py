"""What only the Redis store promises: keys, round trips, scripts, and every kind of server."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import redis
from limits.storage import storage_from_string
from redis.crc import key_slot

from inf_middleware import ConfigError, Tier, Tiers
from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Admission, Ask, Held, Refusal
from inf_middleware.domain.rates import LimitGroup
from inf_middleware.stores.redis import RedisStore
from tests.redis_servers import (
    RedisServer,
    redis_cluster,
    redis_sentinels,
    redis_server,
)
from tests.tcp_proxy import TcpProxy, proxying

FREE = Tiers.default().named("free")
TIER1 = Tiers.default().named("tier1")
MANY = Tier(
    "Many",
    2,
    100,
    10_000,
    requests=["1000/day"],
    tokens=["100000/day"],
    models={"own-*": {"tokens_per_minute": 500}},
)


def ask(call: str, account: str = "acme", *, tier: Tier = TIER1, tokens: int = 100) -> Ask:
    return Ask(call, account, tier.groups_for("own-1"), tokens)


@contextlib.asynccontextmanager
async def store_at(storage: Any, **options: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(storage, **{"timeout_s": 5.0, **options})
    try:
        yield store
    finally:
        await store.aclose()


async def lives_through_a_request(store: RedisStore) -> None:
    """All operations, in groups of two keys, on whatever server is behind the store."""
    first = await store.admit(ask("one", tier=MANY, tokens=400))
    assert isinstance(first, Admission)
    assert (first.standings.concurrency.remaining, first.standings.tokens.remaining) == (1, 100)
    refusal = await store.admit(ask("two", tier=MANY, tokens=101))
    assert isinstance(refusal, Refusal)
    assert (refusal.code, refusal.scope) == ("tokens_limit_exceeded", "own-*")
    others = [await store.admit(ask("x", f"account-{n}", tier=MANY)) for n in range(20)]
    held = [Held(first, 10), *(Held(other, 5) for other in others if isinstance(other, Admission))]
    assert len(held) == 21
    assert await store.renew(held) == frozenset()
    assert store.workers == 1
    for admission, used in held:
        await store.settle(admission, used)
    assert await store.renew(held[:1]) == {"one"}
    second = await store.admit(ask("two", tier=MANY, tokens=490))
    assert isinstance(second, Admission)
    assert second.standings.requests.remaining == 98
    shown = {group.scope: group for group in await store.show("acme")}
    assert shown[""].running == shown["own-*"].running == 1
    assert {(w.metric, w.window_s): w.used for w in shown[""].windows} == {
        ("requests", 60.0): 2,
        ("requests", 86_400.0): 2,
    }
    assert await store.release("acme") == 1
    third = await store.admit(ask("three", tier=MANY, tokens=490))
    assert isinstance(third, Admission)


def test_on_one_server_a_request_lives_as_promised(server: RedisServer) -> None:
    async def go() -> None:
        async with store_at(server.uri, deployment="one server") as store:
            await lives_through_a_request(store)

    asyncio.run(go())


@pytest.mark.parametrize("kind", [{"tls": True}, {"unix": True}], ids=["tls", "unix"])
def test_over_tls_and_unix_sockets_a_request_lives_as_promised(kind: dict[str, bool]) -> None:
    async def go(uri: str) -> None:
        async with store_at(uri) as store:
            await lives_through_a_request(store)

    with redis_server(**kind) as server:
        asyncio.run(go(server.uri))


def test_by_the_valkey_client_a_request_lives_as_promised(server: RedisServer) -> None:
    async def go() -> None:
        uri = server.uri.replace("redis://", "valkey://")
        async with store_at(uri, deployment="valkey client") as store:
            await lives_through_a_request(store)

    asyncio.run(go())


def test_on_a_cluster_a_request_lives_as_promised_and_accounts_are_spread() -> None:
    async def go(uri: str) -> None:
        async with store_at(uri) as store:
            await lives_through_a_request(store)

    with redis_cluster() as cluster:
        asyncio.run(go(cluster.uri))
        found = [key for node in cluster.nodes for key in node.ask("KEYS", "inf1:*:own*")]
        assert len(found) > 1, "the accounts are spread over the nodes"


def test_on_a_sentinel_set_a_request_lives_through_a_failover_in_the_middle() -> None:
    async def go(sentinels: Any) -> None:
        async with store_at(sentinels.uri) as store:
            await lives_through_a_request(store)
            before = await store.admit(ask("before", "other", tier=FREE))
            assert isinstance(before, Admission)
            # What was acknowledged to us may not have reached the replica yet.
            await asyncio.to_thread(sentinels.primary.ask, "WAIT", 1, 2_000)
            await asyncio.to_thread(sentinels.fail_over)
            for _ in range(50):
                with contextlib.suppress(LimitsUnavailable):
                    refusal = await store.admit(ask("after", "other", tier=FREE))
                    break
            # The heir knows of the slot, and not of the scripts.
            assert isinstance(refusal, Refusal)
            assert refusal.code == "concurrency_limit_exceeded"
            await store.settle(before, 10)
            assert isinstance(await store.admit(ask("after", "other", tier=FREE)), Admission)

    with redis_sentinels() as sentinels:
        asyncio.run(go(sentinels))


def test_a_storage_object_of_the_users_own_is_used_as_it_is(server: RedisServer) -> None:
    async def go() -> None:
        for decodes in (False, True):
            storage = storage_from_string(
                f"async+{server.uri}", implementation="redispy", decode_responses=decodes
            )
            async with store_at(storage, deployment=f"own {decodes}") as store:
                await lives_through_a_request(store)
            # It is the user's: it stays open.
            assert await storage.check()
            await storage.bridge.get_connection().aclose()

    asyncio.run(go())


def test_a_storage_on_another_client_is_refused_with_what_to_write() -> None:
    class Coredis:
        class Bridge:
            __module__ = "limits.aio.storage.redis.coredis"

            def get_connection(self) -> None: ...

        bridge = Bridge()

    with pytest.raises(ConfigError, match='implementation="redispy"'):
        RedisStore(Coredis(), timeout_s=1.0)


@pytest.fixture
def counted(server: RedisServer) -> Iterator[Any]:
    with redis.Redis.from_url(server.uri) as client:
        client.config_resetstat()
        yield lambda: {
            name.removeprefix("cmdstat_"): stats["calls"]
            for name, stats in client.info("commandstats").items()
        }


def test_one_round_trip_to_admit_and_one_to_settle(server: RedisServer, counted: Any) -> None:
    async def go() -> None:
        async with store_at(server.uri, deployment="round trips") as store:
            for number in range(10):
                admission = await store.admit(ask(f"{number}", tier=MANY, tokens=1))
                assert isinstance(admission, Admission)
                await store.settle(admission, 1)

    asyncio.run(go())
    calls = counted()
    sent = {name: calls.get(name, 0) for name in ("evalsha", "eval", "script|load")}
    # A server that does not know the script yet is told it once.
    assert sent["evalsha"] == 20
    assert sent["eval"] <= 1
    assert sent["script|load"] == 0


def test_a_server_that_forgot_the_scripts_is_told_them_in_the_same_call(
    server: RedisServer, client: redis.Redis
) -> None:
    async def go() -> None:
        async with store_at(server.uri, deployment="noscript") as store:
            for number in range(5):
                client.script_flush()
                held = []
                for account in ("a", "b", "c"):
                    admission = await store.admit(ask(f"{number}", account))
                    assert isinstance(admission, Admission)
                    held.append(Held(admission, 1))
                client.script_flush()
                assert await store.renew(held) == frozenset()
                client.script_flush()
                for admission, used in held:
                    await store.settle(admission, used)

    asyncio.run(go())


def test_keys_are_in_one_hash_slot_expire_and_name_nobody(
    server: RedisServer, client: redis.Redis
) -> None:
    async def go() -> None:
        async with store_at(server.uri, deployment="a{b}c *") as store:
            assert isinstance(await store.admit(ask("x", "acme@example.org", tier=MANY)), Admission)
            await store.ping()

    asyncio.run(go())
    keys = [key.decode() for key in client.keys("inf1:a%7Bb%7Dc%20%2A:*")]
    states = [key for key in keys if not key.endswith(":workers")]
    assert len(states) == 2
    assert len({key_slot(key.encode()) for key in states}) == 1
    for key in keys:
        assert "acme" not in key
        assert 0 < client.pttl(key) <= (86_400 + 1) * 1000
        assert b"acme" not in (client.dump(key) or b"")


def test_an_idle_account_leaves_nothing_behind(server: RedisServer, client: redis.Redis) -> None:
    second = Tier("Second", 4, 10**6, 10**9)

    async def go() -> None:
        async with store_at(server.uri, deployment="idle", lease_s=1.0) as store:
            admission = await store.admit(ask("x", tier=second))
            assert isinstance(admission, Admission)
            (key,) = client.keys("inf1:idle:{*")
            # In progress: until the lease has ended and was forgotten.
            assert 300_000 < client.pttl(key) <= 303_000
            await store.settle(admission, 1)
            # Settled: until the window of a minute is over.
            assert 59_000 < client.pttl(key) <= 61_000

    asyncio.run(go())


def test_two_deployments_on_one_server_keep_apart(server: RedisServer) -> None:
    async def go() -> None:
        async with (
            store_at(server.uri, deployment="blue") as blue,
            store_at(server.uri, deployment="green") as green,
        ):
            for store in (blue, green):
                assert isinstance(await store.admit(ask("x", tier=FREE)), Admission)
                assert isinstance(await store.admit(ask("y", tier=FREE)), Refusal)
                await store.ping()
                assert store.workers == 1

    asyncio.run(go())


def test_processes_of_a_deployment_are_counted_by_their_signs_of_life(server: RedisServer) -> None:
    async def go() -> None:
        async with contextlib.AsyncExitStack() as stack:
            stores = [
                await stack.enter_async_context(store_at(server.uri, deployment="counted"))
                for _ in range(3)
            ]
            for store in stores:
                await store.ping()
            await stores[0].ping()
            assert [store.workers for store in stores] == [3, 2, 3]

    asyncio.run(go())


def test_a_server_that_does_not_answer_costs_no_more_than_the_deadline(
    server: RedisServer,
) -> None:
    async def go(port: int, proxy: Any) -> None:
        async with store_at(f"redis://127.0.0.1:{port}", timeout_s=0.5) as store:
            assert isinstance(await store.admit(ask("x", "deadline")), Admission)
            proxy.partition()
            for step in (store.admit(ask("y", "deadline")), store.ping()):
                with pytest.raises(LimitsUnavailable, match=r"no answer within 0\.5 s"):
                    await step
            proxy.heal()
            assert isinstance(await store.admit(ask("z", "deadline")), Admission)

    with proxying(server.port) as proxy:
        asyncio.run(go(proxy.port, proxy))


def test_a_look_at_all_keys_is_given_up_in_time(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inf_middleware.stores.scripts.KEYS_TIMEOUT_S", 0.3)

    async def go(port: int, proxy: Any) -> None:
        async with store_at(f"redis://127.0.0.1:{port}") as store:
            assert await store.show("nobody") == []
            proxy.partition()
            with pytest.raises(LimitsUnavailable, match=r"no answer within 0\.3 s"):
                await store.show("nobody")
            proxy.heal()

    with proxying(server.port) as proxy:
        asyncio.run(asyncio.wait_for(go(proxy.port, proxy), 30))


def test_a_socket_timeout_that_a_uri_names_holds_beside_the_deadline(server: RedisServer) -> None:
    async def go(port: int, proxy: Any) -> None:
        uri = f"redis://127.0.0.1:{port}?socket_timeout=0.05"
        async with store_at(uri, timeout_s=30.0) as store:
            assert isinstance(await store.admit(ask("x", "sockets")), Admission)
            proxy.partition()
            with pytest.raises(LimitsUnavailable, match="Timeout"):
                await store.admit(ask("y", "sockets"))
            proxy.heal()

    with proxying(server.port) as proxy:
        asyncio.run(asyncio.wait_for(go(proxy.port, proxy), 25))


def test_an_answer_that_was_lost_is_asked_for_again_and_takes_nothing_twice(
    server: RedisServer,
) -> None:
    async def go(port: int, proxy: Any) -> None:
        async with store_at(f"redis://127.0.0.1:{port}", timeout_s=0.5) as store:
            proxy.partition("answers")
            with pytest.raises(LimitsUnavailable):
                await store.admit(ask("x", "lost answer", tokens=1_000))
            proxy.cut()
            proxy.heal()
            again = await store.admit(ask("x", "lost answer", tokens=1_000))
            assert isinstance(again, Admission)
            assert again.standings.tokens.remaining == TIER1.tokens_per_minute - 1_000
            assert again.standings.requests.remaining == TIER1.requests_per_minute - 1
            assert again.standings.concurrency.remaining == TIER1.concurrency - 1

    with proxying(server.port) as proxy:
        asyncio.run(go(proxy.port, proxy))


def test_connections_that_a_server_has_closed_are_no_outage() -> None:
    async def crowd(store: RedisStore, name: str) -> None:
        tier = Tier("Wide", 10**4, 10**6, 10**9)
        asks = [ask(f"{name} {number}", tier=tier) for number in range(30)]
        for answer in await asyncio.gather(*map(store.admit, asks)):
            assert isinstance(answer, Admission)

    async def go(server: RedisServer) -> None:
        async with store_at(server.uri) as store:
            await crowd(store, "before")
            await asyncio.to_thread(server.restart, keeps_data=True)
            # All thirty connections are of a server that is no more.
            await crowd(store, "after")

    with redis_server(appendonly=True) as server:
        asyncio.run(go(server))


def test_connections_that_a_firewall_has_forgotten_are_no_outage(server: RedisServer) -> None:
    async def go(proxy: TcpProxy) -> None:
        async with store_at(f"redis://127.0.0.1:{proxy.port}", deployment="forgotten") as store:
            crowd = [ask(f"{number}", f"{number}") for number in range(30)]
            for answer in await asyncio.gather(*map(store.admit, crowd)):
                assert isinstance(answer, Admission)
            # Nothing tells the pool: each of its thirty connections seems alive until it is used,
            # so that a second try over another one of them would fail like the first.
            proxy.forget()
            assert isinstance(await store.admit(ask("after", "other")), Admission)

    with proxying(server.port) as proxy:
        asyncio.run(go(proxy))


def test_many_at_once_share_a_bounded_number_of_connections(
    server: RedisServer, client: redis.Redis
) -> None:
    tier = Tier("Wide", 10**4, 10**6, 10**9)

    async def go() -> list[Any]:
        async with store_at(server.uri, deployment="many", timeout_s=30.0) as store:
            asks = [ask(f"{number}", f"{number % 7}", tier=tier) for number in range(2_000)]
            answers = await asyncio.gather(*map(store.admit, asks))
            connected = client.info("clients")["connected_clients"]
            assert connected <= 64 + 10
            return answers

    assert all(isinstance(answer, Admission) for answer in asyncio.run(go()))


def test_a_crowd_that_waits_for_its_turn_is_no_outage_and_ends_with_one(
    server: RedisServer,
) -> None:
    tier = Tier("Wide", 10**4, 10**6, 10**9)

    async def go(port: int, proxy: Any) -> None:
        async with store_at(
            f"redis://127.0.0.1:{port}", deployment="crowd", timeout_s=2.0
        ) as store:
            proxy.delay_s = 0.06
            asks = [ask(f"{number}", f"{number % 7}", tier=tier) for number in range(1_500)]
            # 24 rounds of 64 take 0.12 s each at least: the last waits longer than any deadline.
            answers = await asyncio.gather(*map(store.admit, asks))
            assert all(isinstance(answer, Admission) for answer in answers)
            proxy.partition()
            loop = asyncio.get_running_loop()
            begun = loop.time()
            found = await asyncio.gather(*map(store.admit, asks), return_exceptions=True)
            assert all(isinstance(answer, LimitsUnavailable) for answer in found)
            # One deadline for all, not one for each round: 24 of them would be 48 s.
            assert loop.time() - begun < 40.0
            proxy.heal()

    with proxying(server.port) as proxy:
        asyncio.run(go(proxy.port, proxy))


def test_one_store_serves_event_loops_one_after_another(server: RedisServer) -> None:
    store = RedisStore(server.uri, deployment="loops", timeout_s=5.0)

    async def go(number: int) -> None:
        assert isinstance(await store.admit(ask(f"{number}")), Admission)
        await store.aclose()

    for number in range(3):
        asyncio.run(go(number))


class Interrupted(tuple[LimitGroup, ...]):  # noqa: SLOT001 - a tuple can have none
    """Groups during the first look at which something else happens."""

    meanwhile: Callable[[], None] | None = None

    def __iter__(self) -> Iterator[LimitGroup]:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().__iter__()


def test_two_event_loops_that_ask_for_an_account_at_once_ask_by_all_of_its_limits(
    server: RedisServer,
) -> None:
    store = RedisStore(server.uri, deployment="at once", timeout_s=5.0)
    groups = Interrupted(MANY.groups_for("own-1"))
    answers: list[Admission | Refusal] = []

    async def go(call: str) -> None:
        answers.append(await store.admit(Ask(call, "acme", groups, 400)))
        await store.aclose()

    def meanwhile() -> None:
        other = threading.Thread(target=asyncio.run, args=(go("other"),))
        other.start()
        other.join()

    groups.meanwhile = meanwhile
    asyncio.run(go("first"))
    assert [type(answer) for answer in answers] == [Admission, Refusal]
