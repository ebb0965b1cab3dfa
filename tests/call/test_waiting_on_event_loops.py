"""Who waits on one event loop of a process is woken by what ends on another, and at once."""

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Account, Tier
from inf_middleware.call.waiting import Places, Waiting
from inf_middleware.domain.limits import Ask
from inf_middleware.stores.memory import MemoryStore
from tests.apps import completion, read_all, usage_of
from tests.driver import post
from tests.kit import CHAT, House
from tests.processes import wait_until

# Far beyond what any of these tests takes, and what they take at most.
LONG_S, SOON_S = 60.0, 10.0

ONE = Tier("One", 1, 1_000, 100_000)


class Loop:
    """An event loop in a thread of its own, as a server has that runs one per thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def run(self, step: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(step, self._loop)

    def end(self) -> None:
        self.run(_cancel_others()).result(SOON_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for other in others:
        other.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@pytest.fixture
def new_loop() -> Iterator[Callable[[], Loop]]:
    made: list[Loop] = []

    def new() -> Loop:
        made.append(Loop())
        return made[-1]

    yield new
    for loop in made:
        loop.end()


class Model:
    """Works on each request until it is told to end it, from whichever thread."""

    def __init__(self) -> None:
        self._came = threading.Semaphore(0)
        self._working: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        done = asyncio.Event()
        self._working.append((asyncio.get_running_loop(), done))
        self._came.release()
        await done.wait()
        body = json.dumps(completion(usage=usage_of(1, 1))).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def end_the_next(self) -> None:
        """End a request, which has come or comes soon."""
        assert self._came.acquire(timeout=SOON_S), "nobody came"
        loop, done = self._working.pop(0)
        loop.call_soon_threadsafe(done.set)


class Counting(MemoryStore):
    """Counts how often it was asked."""

    asked = 0

    async def admit(self, ask: Ask) -> Any:
        self.asked += 1
        return await super().admit(ask)


@pytest.mark.parametrize(
    ("accounts", "options"),
    [(["a"] * 5, {}), (["a", "b", "c", "d", "e"], {"max_in_flight": 1})],
    ids=["of one account", "of a process that is full"],
)
def test_all_who_wait_are_served_one_after_another_whichever_event_loop_they_wait_on(
    accounts: list[str],
    options: dict[str, Any],
    tmp_path: Path,
    new_loop: Callable[[], Loop],
) -> None:
    model = Model()
    known = {f"sk-{name}": Account(name, tier=ONE) for name in "abcde"}
    store = Counting()
    house = House(model, tmp_path, accounts=known, max_wait_s=LONG_S, storage=store, **options)

    def waits(count: int) -> bool:
        waiting: Waiting = house.app._stack.worker._parts.limiting.waiting
        return waiting._waiting == count

    loops = [new_loop() for _ in accounts]
    asked = []
    for place, (loop, account) in enumerate(zip(loops, accounts, strict=True)):
        asked.append(loop.run(post(house.app, CHAT, key=f"sk-{account}")))
        if place == 0:
            assert model._came.acquire(timeout=SOON_S)
            model._came.release()
        else:
            wait_until(partial(waits, place), f"{place} to wait")
    for _ in asked:
        model.end_the_next()
    assert [one.result(SOON_S).status for one in asked] == [200] * 5
    # Once each at first, and when they are woken; those of a line once a second between.
    assert store.asked < 40
    loops[0].run(house.close()).result(SOON_S)


def test_a_place_that_is_handed_to_who_has_given_up_on_another_event_loop_goes_to_the_next(
    new_loop: Callable[[], Loop],
) -> None:
    places = Places(1)
    assert places.try_take()
    first, second = new_loop(), new_loop()
    waits = [loop.run(places.take()) for loop in (first, second)]
    for loop in (first, second):
        loop.run(asyncio.sleep(0)).result(SOON_S)
    held, go_on = threading.Event(), threading.Event()

    async def hold_and_cancel() -> None:
        held.set()
        go_on.wait(SOON_S)  # while this loop stands still the place is handed to who waits on it
        (wait,) = asyncio.all_tasks() - {asyncio.current_task()}
        wait.cancel()

    holding = first.run(hold_and_cancel())
    assert held.wait(SOON_S)

    async def give() -> None:
        places.give()

    new_loop().run(give()).result(SOON_S)
    go_on.set()
    holding.result(SOON_S)
    with pytest.raises(CancelledError):
        waits[0].result(SOON_S)
    waits[1].result(SOON_S)
    assert not places.try_take()
