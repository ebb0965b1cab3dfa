"""In one process the stacks of the same settings share one store, one ledger and one counter."""

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import BillingEvent, ConfigError, CostLedger, Gate, TierLimiter, TokenMeter
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.sharing import User, identity, share
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT, Closing, lifespan_through, records_of

MODEL = JsonApp(completion(usage=usage_of(2, 3)))
ACCOUNTS = {"sk-demo": "tier1"}


async def shut_down(app: Any) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.shutdown"}

    async def send(message: dict[str, Any]) -> None: ...

    await lifespan_through(app, receive, send)


def ledger_threads() -> int:
    return sum(thread.name.startswith("inf-middleware-ledger") for thread in threading.enumerate())


def test_an_account_has_its_limits_once_in_all_stacks_of_a_process(tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path}/l.db"
    stacks = [
        Gate(MODEL, accounts=ACCOUNTS, ledger=ledger),
        TokenMeter(TierLimiter(MODEL, accounts=ACCOUNTS)),
        TierLimiter(MODEL, accounts=ACCOUNTS),
        TierLimiter(MODEL, accounts=ACCOUNTS, deployment="another"),
    ]

    async def go() -> list[str]:
        answers = [await post(stack, CHAT, key="sk-demo") for stack in stacks]
        return [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]

    assert asyncio.run(go()) == ["19", "18", "17", "19"]


def test_one_writer_serves_all_stacks_and_the_last_of_them_closes_it(tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path}/l.db"
    before = ledger_threads()
    first, second = (Gate(Closing(MODEL), accounts=ACCOUNTS, ledger=ledger) for _ in range(2))

    async def go() -> list[int]:
        threads = []
        for stack in (first, second):
            await post(stack, CHAT, key="sk-demo")
            threads.append(ledger_threads() - before)
        await shut_down(first)
        threads.append(ledger_threads() - before)
        assert (await post(second, CHAT, key="sk-demo")).status == 200
        await shut_down(second)
        threads.append(ledger_threads() - before)
        return threads

    assert asyncio.run(go()) == [1, 1, 1, 0]
    assert len(records_of(tmp_path / "l.db")) == 3


def test_one_relay_delivers_for_all_stacks_each_event_once(tmp_path: Path) -> None:
    taken: list[str] = []

    async def send(events: Sequence[BillingEvent]) -> None:
        taken.extend(event.id for event in events)

    options: dict[str, Any] = {"ledger": f"sqlite:///{tmp_path}/l.db", "sinks": {"mine": send}}
    first, second = (CostLedger(Closing(MODEL), **options) for _ in range(2))

    async def go() -> None:
        await post(first, CHAT)
        await post(second, CHAT)
        await shut_down(first)
        await post(second, CHAT)
        await shut_down(second)

    asyncio.run(go())
    assert len(taken) == len(set(taken)) == 3


class Slow:
    """A sink that is still at it when the next event comes."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.closed = False
        self.at_once = self._running = 0

    async def __call__(self, events: Sequence[BillingEvent]) -> None:
        self._running += 1
        self.at_once = max(self.at_once, self._running)
        try:
            await asyncio.sleep(0.02)
        finally:
            self._running -= 1
        self.taken.extend(event.id for event in events)

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize("end", [shut_down, None], ids=["shut down", "dropped"])
def test_a_sink_gets_each_event_once_whatever_others_the_stacks_have(
    end: Any, tmp_path: Path
) -> None:
    mine, other, third = Slow(), Slow(), Slow()
    ledger = f"sqlite:///{tmp_path}/l.db"
    stacks = [
        CostLedger(Closing(MODEL), ledger=ledger, sinks=sinks)
        for sinks in ({"mine": mine, "third": third}, {"mine": mine, "other": other})
    ]

    async def go() -> None:
        for _ in range(5):
            for stack in stacks:
                await post(stack, CHAT)
                await asyncio.sleep(0.01)
        first = stacks.pop(0)
        if end is not None:
            await end(first)
            assert third.closed
            assert len(third.taken) == 10
        del first
        gc.collect()
        await post(stacks[0], CHAT)
        async with asyncio.timeout(20):
            while min(len(mine.taken), len(other.taken)) < 11:  # noqa: ASYNC110 - as sinks take
                await asyncio.sleep(0.01)
        assert not mine.closed
        await shut_down(stacks[0])

    asyncio.run(go())
    ids = [record["request_id"] for record in records_of(tmp_path / "l.db")]
    assert mine.taken == other.taken == ids
    assert mine.closed
    assert other.closed


@pytest.mark.parametrize("is_shared", [False, True], ids=["by its URI", "by its object"])
def test_a_stack_that_was_dropped_delivers_nothing_beside_the_next(
    is_shared: bool, tmp_path: Path
) -> None:
    sink = Slow()
    ledger: Any = SqliteLedger(tmp_path / "l.db") if is_shared else f"sqlite:///{tmp_path}/l.db"

    async def use() -> CostLedger:
        stack = CostLedger(Closing(MODEL), ledger=ledger, sinks={"mine": sink})
        for _ in range(3):
            await post(stack, CHAT)
            await asyncio.sleep(0.01)
        return stack

    async def go() -> None:
        for _ in range(4):
            await use()
            gc.collect()
        last = await use()
        async with asyncio.timeout(20):
            while len(sink.taken) < 15:  # noqa: ASYNC110 - as the sink takes
                await asyncio.sleep(0.01)
        relays = [task for task in asyncio.all_tasks() if task.get_name() == "inf-middleware-relay"]
        assert len(relays) == 1
        await shut_down(last)

    asyncio.run(go())
    assert sink.at_once == 1
    ids = [record["request_id"] for record in records_of(tmp_path / "l.db")]
    assert list(dict.fromkeys(sink.taken)) == ids
    assert len(sink.taken) - len(ids) <= 4 * 3  # of what was under way when a stack was dropped


def test_the_relay_of_a_loop_that_runs_delivers_for_other_loops_too(tmp_path: Path) -> None:
    taken: list[tuple[str, int]] = []

    async def send(events: Sequence[BillingEvent]) -> None:
        taken.extend((event.id, threading.get_ident()) for event in events)

    options: dict[str, Any] = {"ledger": f"sqlite:///{tmp_path}/l.db", "sinks": {"mine": send}}
    first, second = (CostLedger(Closing(MODEL), **options) for _ in range(2))
    posted, done = threading.Event(), threading.Event()

    async def in_a_thread() -> None:
        await post(first, CHAT)
        posted.set()
        await asyncio.to_thread(done.wait, 20)
        await shut_down(first)

    async def go() -> None:
        for _ in range(3):
            await post(second, CHAT)
        async with asyncio.timeout(20):
            while len(taken) < 4:  # noqa: ASYNC110 - the other loop's thread fills it
                await asyncio.sleep(0.01)

    other = threading.Thread(target=asyncio.run, args=(in_a_thread(),))
    other.start()
    assert posted.wait(20)
    try:
        asyncio.run(go())
    finally:
        done.set()
        other.join(30)
    assert len({event for event, _ in taken}) == len(taken) == 4
    assert {thread for _, thread in taken} == {other.ident}


def test_one_name_of_a_sink_is_one_sink_for_all_stacks_of_a_ledger(tmp_path: Path) -> None:
    async def send(events: Sequence[BillingEvent]) -> None: ...

    other = Slow()
    ledger = f"sqlite:///{tmp_path}/l.db"
    first = CostLedger(MODEL, ledger=ledger, sinks={"mine": send})
    second = CostLedger(MODEL, ledger=ledger, sinks={"another": other, "mine": other})
    third = CostLedger(Closing(MODEL), ledger=ledger, sinks={"another": other})

    async def go() -> None:
        await post(first, CHAT)
        await post(third, CHAT)
        with pytest.raises(ConfigError, match="choose another"):
            await post(second, CHAT)
        await shut_down(third)
        assert other.closed  # who was refused uses nothing

    asyncio.run(go())


def test_a_counter_is_made_once_per_setting() -> None:
    one, other = User(), User()
    for same in ("o200k_base", Path("tokenizer.json"), {"a*": "tokenizer.json", "*": "x"}):
        made = share(("counter", identity(same)), one, object).thing
        assert share(("counter", identity(same)), other, object).thing is made
    assert share(("counter", "y"), one, object).thing is not made


def test_what_nobody_uses_any_more_is_not_handed_out_again() -> None:
    one, other = User(), User()
    first = share("key", one, object)
    second = share("key", other, object)
    assert not first.let_go()
    assert not first.let_go()  # once more changes nothing for the other
    assert second.let_go()
    assert share("key", one, object).thing is not first.thing
    made = share("key", one, object).thing
    del one, first  # dropped, without a shutdown
    assert share("key", other, object).thing is not made


ROOT = Path(__file__).parents[2]

FORKED = """
import asyncio, os, sys
from inf_middleware import Gate
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT

def gate():
    return Gate(JsonApp(completion(usage=usage_of(1, 1))), accounts={"sk": "tier1"})

async def ask(*gates):
    return [(await post(one, CHAT, key="sk")).headers["x-ratelimit-remaining-requests"]
            for one in gates]

before = gate()
if sys.argv[1] == "used":
    asyncio.run(ask(before))
child = os.fork()
left = asyncio.run(ask(before, gate()))
print(*left, flush=True)
if child:
    assert os.waitpid(child, 0)[1] == 0
os._exit(0)
"""


@pytest.mark.parametrize(("state", "left"), [("fresh", "19 18"), ("used", "18 17")])
def test_each_process_of_a_fork_shares_within_itself(state: str, left: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKED, state],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [left, left]
    assert len(records_of(tmp_path / "inf-ledger.db")) == (4 if state == "fresh" else 5)


def test_what_is_put_around_a_stack_that_serves_already_is_an_error(tmp_path: Path) -> None:
    limiter = TierLimiter(JsonApp(completion()), accounts={"sk": "free"})
    assert asyncio.run(post(limiter, CHAT, key="sk")).status == 200
    with pytest.raises(ConfigError, match="before its first request"):
        CostLedger(limiter, ledger=f"sqlite:///{tmp_path}/ledger.db")
