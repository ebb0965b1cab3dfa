"""What holds while the shared store is away, and that it comes back by itself."""

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import redis

from inf_middleware import Tier
from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Admission, Ask, Held, Refusal
from inf_middleware.stores import outage
from inf_middleware.stores.memory import MemoryStore
from inf_middleware.stores.outage import OWED_MAX, OutageStore
from inf_middleware.stores.redis import RedisStore
from tests.redis_servers import RedisServer
from tests.tcp_proxy import TcpProxy, proxying

TIER = Tier("T", 4, 8, 4_000)

# Until a storage that is whole again is seen to be: seconds, of a machine that has other work, too.
PATIENCE_S = 90.0


def ask(call: str, tokens: int = 100, *, tier: Tier = TIER, enforce: bool = True) -> Ask:
    return Ask(call, "acme", tier.groups_for(None), tokens, enforce)


class Rig:
    """A store behind a proxy that can be partitioned."""

    def __init__(self, store: OutageStore, shared: RedisStore, proxy: TcpProxy) -> None:
        self.store = store
        self.shared = shared
        self.proxy = proxy

    async def fall(self) -> None:
        """Partition, and let one request notice."""
        await asyncio.to_thread(self.proxy.partition)
        with contextlib.suppress(LimitsUnavailable):
            await self.store.renew(())
        assert self.store.is_away

    async def come_back(self) -> None:
        await asyncio.to_thread(self.proxy.heal)
        deadline = time.monotonic() + PATIENCE_S
        while self.store.is_away:
            if time.monotonic() > deadline:
                for task in asyncio.all_tasks():
                    task.print_stack()
                raise AssertionError("it does not come back; what it waits for is printed above")
            await asyncio.sleep(0.01)

    async def admitted(self, call: str, tokens: int = 100) -> Admission:
        answer = await self.store.admit(ask(call, tokens))
        assert isinstance(answer, Admission), answer
        return answer


@pytest.fixture
def run(
    server: RedisServer, client: redis.Redis, request: pytest.FixtureRequest
) -> Callable[..., None]:
    """Runs a test with a rig on a policy."""

    @contextlib.asynccontextmanager
    async def rig(policy: Any, timeout_s: float) -> AsyncIterator[Rig]:
        with proxying(server.port) as proxy:
            shared = RedisStore(
                f"redis://127.0.0.1:{proxy.port}",
                deployment=f"{request.node.name}-{policy}",
                timeout_s=timeout_s,
            )
            store = OutageStore(shared, MemoryStore(), policy=policy)
            await store.renew(())
            try:
                yield Rig(store, shared, proxy)
            finally:
                await asyncio.to_thread(proxy.heal)
                await store.aclose()

    def run(policy: Any, test: Any, *, timeout_s: float = 0.2) -> None:
        async def go() -> None:
            async with rig(policy, timeout_s) as made:
                await test(made)

        asyncio.run(go())

    return run


def test_local_goes_on_from_what_this_process_admitted_in_the_last_minute(run: Any) -> None:
    async def test(rig: Rig) -> None:
        for number in range(5):
            admission = await rig.admitted(f"{number}")
            await rig.store.settle(admission, 200)
        await rig.fall()
        standings = (await rig.admitted("a")).standings
        assert (standings.requests.remaining, standings.tokens.remaining) == (2, 2_900)
        for call in ("b", "c"):
            await rig.admitted(call)
        refusal = await rig.store.admit(ask("d"))
        assert isinstance(refusal, Refusal)
        assert (refusal.code, refusal.used) == ("requests_limit_exceeded", 8)

    run("local", test)


def test_local_takes_this_process_share_of_each_limit_rounded_up(run: Any) -> None:
    async def test(rig: Rig) -> None:
        rig.shared.workers = 3
        await rig.fall()
        first = await rig.admitted("a")
        # A third of 4, 8 and 4,000.
        assert first.standings.concurrency.limit == 2
        assert first.standings.requests.limit == 3
        assert first.standings.tokens.limit == 1_334
        await rig.admitted("b")
        refusal = await rig.store.admit(ask("c"))
        assert isinstance(refusal, Refusal)
        assert (refusal.code, refusal.limit) == ("concurrency_limit_exceeded", 2)
        # Who looks whether it is back sees only itself: the share stays.
        rig.shared.workers = 1
        refusal = await rig.store.admit(ask("d"))
        assert isinstance(refusal, Refusal)
        assert refusal.limit == 2

    run("local", test)


@pytest.mark.parametrize(
    ("anew_s", "share"), [(outage.COUNTED_ANEW_S, 2), (0.0, 4)], ids=["soon", "later"]
)
def test_an_outage_soon_after_another_goes_by_the_processes_seen_before_both(
    run: Any, monkeypatch: pytest.MonkeyPatch, anew_s: float, share: int
) -> None:
    monkeypatch.setattr(outage, "COUNTED_ANEW_S", anew_s)

    async def test(rig: Rig) -> None:
        rig.shared.workers = 3
        await rig.fall()
        await rig.come_back()
        # It is the first to come back, and sees only itself.
        assert rig.shared.workers == 1
        await rig.fall()
        assert (await rig.admitted("a")).standings.concurrency.limit == share

    run("local", test)


def test_local_admits_what_exceeds_its_share_of_tokens_by_the_whole_share(run: Any) -> None:
    async def test(rig: Rig) -> None:
        rig.shared.workers = 4
        await rig.fall()
        large = await rig.admitted("large", 3_000)
        assert (large.standings.tokens.limit, large.standings.tokens.remaining) == (1_000, 0)
        refusal = await rig.store.admit(ask("next", 1))
        assert isinstance(refusal, Refusal)
        await rig.store.settle(large, 1_200)
        refusal = await rig.store.admit(ask("next", 1))
        assert isinstance(refusal, Refusal)
        assert (refusal.code, refusal.used) == ("tokens_limit_exceeded", 1_200)

    async def comes_back(rig: Rig) -> None:
        rig.shared.workers = 4
        await rig.fall()
        large = await rig.admitted("large", 3_000)
        await rig.come_back()
        # It counts with all that it asked for, as every other.
        assert (await rig.admitted("next", 0)).standings.tokens.remaining == 1_000
        await rig.store.settle(large, 1_200)
        assert (await rig.admitted("last", 0)).standings.tokens.remaining == 2_800

    run("local", test)
    run("local", comes_back)


def test_refuse_refuses_and_admit_admits_everybody(run: Any) -> None:
    async def refuses(rig: Rig) -> None:
        await rig.fall()
        with pytest.raises(LimitsUnavailable):
            await rig.store.admit(ask("a"))

    async def admits(rig: Rig) -> None:
        await rig.fall()
        for number in range(50):
            assert (await rig.admitted(f"{number}")).would_refuse is None

    run("refuse", refuses)
    run("admit", admits)


def test_it_comes_back_by_itself_with_one_line_for_each_change(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(rig: Rig) -> None:
        for _ in range(2):
            await rig.fall()
            for number in range(20):
                await rig.store.admit(ask(f"{number}"))
            await rig.come_back()
        assert rig.store.outages == 2

    with caplog.at_level(logging.INFO, "inf_middleware"):
        run("local", test)
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("limits")]
    assert [line.split(" ")[3] for line in lines] == ["failed:", "is", "failed:", "is"]
    assert "goes on alone, with its share" in lines[0]


def test_what_was_settled_meanwhile_is_made_up(run: Any) -> None:
    async def test(rig: Rig) -> None:
        held = [await rig.admitted(f"{number}", 500) for number in range(4)]
        await rig.store.renew([Held(one, 0) for one in held])
        await rig.fall()
        for used, admission in zip((500, 100, 900), held[:3], strict=True):
            await rig.store.settle(admission, used)
        await rig.come_back()
        # One still runs, with its reservation; the others are what they used.
        refusal = await rig.shared.admit(ask("probe", 10**6))
        assert isinstance(refusal, Refusal)
        assert refusal.standings.concurrency.remaining == 3
        assert refusal.used == 500 + 500 + 100 + 900
        await rig.store.settle(held[3], 1)
        assert rig.store._owed == {}
        assert rig.store._known == set()

    run("local", test)


def test_what_was_admitted_alone_counts_again_when_the_store_is_back(run: Any) -> None:
    async def test(rig: Rig) -> None:
        await rig.fall()
        held = [await rig.admitted(f"{number}", 500) for number in range(3)]
        await rig.store.settle(held.pop(), 500)
        await rig.come_back()
        standings = (await rig.admitted("next", 0)).standings
        # Two still run; the third has ended before, and is not asked for any more.
        assert standings.concurrency.remaining == 1
        assert standings.tokens.remaining == 3_000
        for admission in held:
            await rig.store.settle(admission, 100)
        standings = (await rig.admitted("last", 0)).standings
        assert (standings.concurrency.remaining, standings.tokens.remaining) == (2, 3_800)
        assert rig.store._alone == {}

    for policy in ("local", "admit"):
        run(policy, test)


def test_it_comes_back_to_a_process_that_admits_faster_than_it_makes_up(run: Any) -> None:
    wide = Tier("Wide", 10**5, 10**6, 10**9)

    async def test(rig: Rig) -> None:
        await rig.fall()
        ending = False

        async def ask_on(caller: int) -> None:
            for number in itertools.count():
                if ending:
                    return
                answer = await rig.store.admit(ask(f"{caller} {number}", tier=wide))
                assert isinstance(answer, Admission)
                await asyncio.sleep(0.001)
                await rig.store.settle(answer, 1)

        async with asyncio.TaskGroup() as group:
            for caller in range(20):
                group.create_task(ask_on(caller))
            try:
                await rig.come_back()
            finally:
                ending = True

    # The proxy has a thread of this process, to which the callers leave little time.
    run("local", test, timeout_s=2.0)


def test_it_is_looked_for_on_the_next_event_loop_where_one_ended_in_an_outage(
    server: RedisServer,
) -> None:
    with proxying(server.port) as proxy:
        uri = f"redis://127.0.0.1:{proxy.port}"
        shared = RedisStore(uri, deployment="next loop", timeout_s=0.2)
        store = OutageStore(shared, MemoryStore(), policy="local")

        async def falls() -> None:
            await store.admit(ask("first"))

        async def comes_back() -> None:
            await store.admit(ask("second"))
            await Rig(store, shared, proxy).come_back()
            await store.aclose()

        proxy.partition()
        asyncio.run(falls())
        assert store.is_away
        asyncio.run(comes_back())


def test_an_admission_whose_answer_was_lost_keeps_no_slot(run: Any) -> None:
    async def test(rig: Rig) -> None:
        await rig.store.renew(())  # the server knows the script: else it is asked to send it
        await asyncio.to_thread(rig.proxy.partition, "answers")
        with pytest.raises(LimitsUnavailable):
            await rig.store.admit(ask("lost", 1_000))
        await rig.come_back()
        standings = (await rig.admitted("next", 0)).standings
        assert standings.concurrency.remaining == 3
        assert standings.tokens.remaining == 4_000
        # An admitted request counts as a request, whatever becomes of it.
        assert standings.requests.remaining == 6

    run("refuse", test)


def test_a_call_whose_answer_was_lost_and_that_its_process_refuses_keeps_no_slot(
    run: Any,
) -> None:
    async def test(rig: Rig) -> None:
        await rig.store.renew(())
        rig.shared.workers = 4
        held = await rig.admitted("here", 10)  # the one slot of this process' share
        await asyncio.to_thread(rig.proxy.partition, "answers")
        for _ in range(2):
            assert isinstance(await rig.store.admit(ask("lost", 1_000)), Refusal)
        await rig.come_back()
        standings = (await rig.admitted("next", 0)).standings
        assert standings.concurrency.remaining == 2
        assert standings.tokens.remaining == 3_990
        assert rig.store._known == {"here", "next"}
        await rig.store.settle(held, 10)

    run("local", test)


def test_a_call_that_was_refused_and_is_admitted_when_it_asks_again_keeps_its_slot(
    run: Any,
) -> None:
    async def test(rig: Rig) -> None:
        await rig.store.renew(())
        rig.shared.workers = 4
        held = await rig.admitted("here", 10)
        await asyncio.to_thread(rig.proxy.partition, "answers")
        assert isinstance(await rig.store.admit(ask("waits", 900)), Refusal)
        await rig.store.settle(held, 10)
        waited = await rig.admitted("waits", 900)
        await rig.come_back()
        standings = (await rig.admitted("next", 0)).standings
        assert standings.concurrency.remaining == 2
        assert standings.tokens.remaining == 3_090
        await rig.store.settle(waited, 500)
        assert (await rig.admitted("last", 0)).standings.tokens.remaining == 3_490
        assert rig.store._known == {"next", "last"}

    run("local", test)


def test_a_call_that_the_store_refuses_when_it_is_back_is_owed_and_known_no_more(run: Any) -> None:
    async def test(rig: Rig) -> None:
        rig.shared.workers = 4
        held = await rig.admitted("here", 10)
        await asyncio.to_thread(rig.proxy.partition, "requests")
        assert isinstance(await rig.store.admit(ask("waits", 3_991)), Refusal)
        # It asks in the moment in which the store is seen to be back, before debts are made up.
        rig.store.is_away = False
        await asyncio.to_thread(rig.proxy.heal)
        assert isinstance(await rig.store.admit(ask("waits", 3_991)), Refusal)
        assert (dict(rig.store._owed), rig.store._known) == ({}, {"here"})
        await rig.store.settle(held, 10)

    run("local", test)


def test_what_is_owed_is_bounded_and_what_is_given_up_is_said(
    run: Any, caplog: pytest.LogCaptureFixture
) -> None:
    wide = Tier("Wide", 10**5, 10**6, 10**9)

    async def test(rig: Rig) -> None:
        held = []
        for number in range(50):
            answer = await rig.store.admit(ask(f"{number}", tier=wide))
            assert isinstance(answer, Admission)
            held.append(answer)
        await rig.fall()
        for admission in held:
            await rig.store.settle(admission, 1)
        for number in range(OWED_MAX):
            rig.store._owe(Admission(ask(f"more {number}"), held[0].standings), 1)
        assert len(rig.store._owed) == OWED_MAX
        await rig.come_back()

    with caplog.at_level(logging.WARNING, "inf_middleware"):
        run("local", test)
    assert any("50 more were given up" in record.getMessage() for record in caplog.records)
