"""What is asked of Redis in one turn of the event loop goes together; each gets its own answer."""

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from inf_middleware import Tier, Tiers
from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Admission, Ask, Held, Refusal
from inf_middleware.stores.pipelines import IN_FLIGHT_MAX, PIPELINE_MAX
from inf_middleware.stores.redis import RedisStore
from tests.processes import wait_until
from tests.redis_servers import RedisServer, redis_server
from tests.tcp_proxy import proxying

WIDE = Tier("Wide", 10**4, 10**6, 10**9)
FREE = Tiers.default().named("free")


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@contextlib.contextmanager
def client(server: RedisServer) -> Iterator[redis.Redis]:
    with contextlib.closing(redis.Redis(port=server.port)) as found:
        yield found


def ask(call: str, account: str, tier: Tier = WIDE) -> Ask:
    return Ask(call, account, tier.groups_for("own-1"), 10)


def reads(server: RedisServer) -> int:
    """How often the server has read something from a connection."""
    with client(server) as asking:
        return int(asking.info("stats")["total_reads_processed"])


def test_what_is_asked_in_one_turn_of_the_loop_goes_together(server: RedisServer) -> None:
    async def go() -> None:
        store = RedisStore(server.uri, timeout_s=5.0)
        first = await store.admit(ask("first", "turn"))
        assert isinstance(first, Admission)
        before = reads(server)
        asked = [ask(f"{number}", f"turn-{number % 7}") for number in range(PIPELINE_MAX)]
        admitted = await asyncio.gather(*map(store.admit, asked))
        between = reads(server)
        for admission in admitted:
            assert isinstance(admission, Admission)
        settling = (store.settle(one, 5) for one in admitted if isinstance(one, Admission))
        await asyncio.gather(*settling)
        after = reads(server)
        # A server reads 16 KB at a time, and greets a connection or two, that of who counts too.
        assert between - before <= PIPELINE_MAX / 5
        assert after - between <= PIPELINE_MAX / 5
        await store.aclose()

    asyncio.run(go())


def test_admissions_and_settlements_of_one_turn_are_one_command(server: RedisServer) -> None:
    def commands() -> int:
        with client(server) as asking:
            stats: dict[str, dict[str, int]] = asking.info("commandstats")
            return stats["cmdstat_evalsha"]["calls"]

    async def go() -> None:
        store = RedisStore(server.uri, timeout_s=5.0)
        first = await store.admit(ask("first", "mixed"))
        assert isinstance(first, Admission)
        before = commands()

        async def settle() -> None:
            await store.settle(first, 7)

        second, _, lost = await asyncio.gather(
            store.admit(ask("second", "mixed")),
            settle(),
            store.renew([Held(first, 8)]),
        )
        assert commands() == before + 1
        assert isinstance(second, Admission)
        assert second.standings.concurrency.remaining == WIDE.concurrency - 2, "in their order"
        assert lost == {"first"}
        (shown,) = await store.show("mixed")
        assert (shown.running, [one.used for one in shown.windows]) == (1, [2, 17])
        await store.aclose()

    asyncio.run(go())


def test_each_of_a_crowd_gets_its_own_answer(server: RedisServer) -> None:
    async def go() -> None:
        store = RedisStore(server.uri, timeout_s=5.0)
        crowd = 3 * PIPELINE_MAX + 1
        asked = [
            ask(
                f"own {number}", f"own-{number // 2}", FREE
            )  # one at once, so the second is refused
            for number in range(crowd)
        ]
        answers = await asyncio.gather(*map(store.admit, asked))
        for number, answer in enumerate(answers):
            if number % 2:
                assert isinstance(answer, Refusal)
                assert answer.code == "concurrency_limit_exceeded"
            else:
                assert isinstance(answer, Admission)
                assert answer.call_id == f"own {number}"
        await store.aclose()

    asyncio.run(go())


def test_scripts_that_a_server_forgot_are_sent_again_for_a_whole_crowd(server: RedisServer) -> None:
    async def go() -> None:
        store = RedisStore(server.uri, timeout_s=5.0)
        with client(server) as asking:
            for turn in range(2):
                asking.script_flush()
                asked = [ask(f"forgot {turn} {number}", "forgot") for number in range(30)]
                answers = await asyncio.gather(*map(store.admit, asked))
                assert all(isinstance(answer, Admission) for answer in answers)
                asking.script_flush()
                await asyncio.gather(
                    *(store.settle(one, 1) for one in answers if isinstance(one, Admission)),
                    store.ping(),
                )
        (shown,) = await store.show("forgot")
        assert (shown.running, shown.windows[0].used) == (0, 60)
        await store.aclose()

    asyncio.run(go())


def test_who_gives_up_takes_nothing_from_those_who_asked_in_the_same_turn(
    server: RedisServer,
) -> None:
    async def go() -> None:
        store = RedisStore(server.uri, timeout_s=5.0)
        tasks = [asyncio.ensure_future(store.admit(ask(f"{n}", "left"))) for n in range(10)]
        await asyncio.sleep(0)  # all have asked, and nothing is sent yet
        for task in tasks[::2]:
            task.cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(answer, Admission) for answer in answers[1::2])
        assert all(isinstance(answer, asyncio.CancelledError) for answer in answers[::2])
        (shown,) = await store.show("left")
        assert shown.running == 5
        await store.aclose()

    asyncio.run(go())


def test_a_task_that_is_cancelled_before_it_begins_leaves_nobody_waiting(
    server: RedisServer,
) -> None:
    async def go() -> None:
        store = RedisStore(server.uri, timeout_s=5.0)
        others = asyncio.all_tasks()
        first = asyncio.ensure_future(store.admit(ask("first", "ended")))
        await asyncio.sleep(0)  # it has asked, and nothing is sent yet
        (sending,) = asyncio.all_tasks() - others - {first}
        sending.cancel()
        assert isinstance(await first, Admission)
        assert isinstance(await store.admit(ask("second", "ended")), Admission)
        await store.aclose()

    asyncio.run(asyncio.wait_for(go(), 10))


def test_a_crowd_beyond_what_is_under_way_at_once_waits_for_one_deadline_alone(
    server: RedisServer,
) -> None:
    async def go(port: int) -> None:
        store = RedisStore(f"redis://127.0.0.1:{port}", timeout_s=0.5)
        assert isinstance(await store.admit(ask("first", "away")), Admission)
        proxy.partition()
        crowd = (IN_FLIGHT_MAX + 3) * PIPELINE_MAX
        tries = (store.admit(ask(f"{number}", "away")) for number in range(crowd))
        answers = await asyncio.gather(*tries, return_exceptions=True)
        assert all(isinstance(answer, LimitsUnavailable) for answer in answers)
        told = {str(answer) for answer in answers}
        assert told == {
            "the limits' storage failed: no answer within 0.5 s",
            "the limits' storage failed: for another just now: no answer within 0.5 s",
        }
        proxy.heal()
        assert isinstance(await store.admit(ask("after", "away")), Admission)
        await store.aclose()

    with proxying(server.port) as proxy:
        asyncio.run(go(proxy.port))


def test_what_is_under_way_is_done_before_the_store_is_closed(server: RedisServer) -> None:
    async def go() -> None:
        store = RedisStore(server.uri, timeout_s=5.0)
        tasks = [asyncio.ensure_future(store.admit(ask(f"{n}", "closing"))) for n in range(5)]
        await asyncio.sleep(0)
        await store.aclose()
        assert all(isinstance(answer, Admission) for answer in await asyncio.gather(*tasks))
        await store.aclose()

    asyncio.run(go())


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[RedisServer]:
    """One address for all slots, as services give that share keys out behind it."""
    server = RedisServer(tmp_path / "redis", "--cluster-enabled", "yes")
    try:
        server.start()
        server.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
        wait_until(lambda: b"cluster_state:ok" in server.ask("CLUSTER", "INFO"), "all slots served")
        yield server
    finally:
        server.stop()


def test_where_accounts_may_not_go_together_each_goes_alone(sharded: RedisServer) -> None:
    async def go() -> None:
        store = RedisStore(sharded.uri, timeout_s=5.0)
        for turn in range(3):
            asked = [ask(f"{turn}-{number}", f"account-{number}") for number in range(7)]
            admitted = await asyncio.gather(*map(store.admit, asked))
            held = [Held(one, 1) for one in admitted if isinstance(one, Admission)]
            assert len(held) == len(asked)
            assert await store.renew(held) == frozenset()
            await asyncio.gather(*(store.settle(one.admission, 5) for one in held))
        readings = [await store.read(one.account_id, one.groups) for one in asked]
        assert {tuple(rate.total for rate in of[0].rates) for of in readings} == {(3, 15)}
        await store.aclose()

    asyncio.run(go())
