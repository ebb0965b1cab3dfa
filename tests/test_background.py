"""What works beside requests keeps nothing of those who ran its event loop, once it has ended."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import BillingEvent, Gate
from inf_middleware.background import Background
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT
from tests.processes import free_ports, wait_until

MODEL = JsonApp(completion(usage=usage_of(2, 3)))


class Caller:
    """What somebody has among the local variables while an event loop runs."""


async def forever() -> None:
    await asyncio.Event().wait()


async def failing() -> None:
    raise ValueError("on purpose")


def begun(background: Background, work: Any, turns: int) -> "weakref.ref[Caller]":
    caller = Caller()

    async def go() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        background.start(work, "beside")
        for _ in range(turns):
            await asyncio.sleep(0)
        assert caller

    asyncio.run(go())
    return weakref.ref(caller)


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize("work", [forever, failing])
def test_the_end_of_an_event_loop_leaves_nothing_of_who_ran_it(work: Any, turns: int) -> None:
    background = Background()
    caller = begun(background, work, turns)
    gc.collect()  # what asyncio.run itself has left
    assert caller() is None
    assert background.task is None


def test_it_is_cancelled_where_it_runs_and_nowhere_else() -> None:
    background = Background()

    async def go() -> None:
        background.start(forever, "beside")
        await asyncio.sleep(0)
        assert background.is_running
        await asyncio.to_thread(asyncio.run, elsewhere())
        assert background.is_running
        await background.end()
        assert not background.is_running
        await background.end()

    async def elsewhere() -> None:
        assert background.is_running
        await background.end()

    asyncio.run(go())


async def sink(events: Sequence[BillingEvent]) -> None: ...


def used(**options: Any) -> "tuple[str, weakref.ref[Gate]]":
    """Ask a stack in an event loop of its own, and drop it without a shutdown."""
    gate = Gate(MODEL, accounts={"sk-demo": "tier1"}, **options)

    async def go() -> str:
        answered = await post(gate, CHAT, key="sk-demo")
        return answered.headers.get("x-ratelimit-remaining-requests", "none")

    return asyncio.run(go()), weakref.ref(gate)


@pytest.mark.parametrize("what", ["ledger", "sinks", "ledger away", "storage away"])
def test_a_dropped_stack_hands_nothing_on_to_the_next(
    what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL + 1, "inf_middleware")  # pytest keeps the errors it is told
    (tmp_path / "file").touch()
    options: dict[str, Any] = {
        "ledger": {"ledger": f"sqlite:///{tmp_path}/l.db"},
        "sinks": {"ledger": f"sqlite:///{tmp_path}/l.db", "sinks": {"mine": sink}},
        "ledger away": {"ledger": f"sqlite:///{tmp_path}/file/l.db", "settle_timeout_s": 0},
        "storage away": {
            "ledger": f"sqlite:///{tmp_path}/l.db",
            "storage": f"redis://127.0.0.1:{free_ports(1)[0]}",
            "on_storage_error": "local",
        },
    }[what]
    first, stack = used(**options)

    def is_gone() -> bool:  # soon: the writer's thread may still be at the end of its batch
        gc.collect()
        return stack() is None

    wait_until(is_gone, "the dropped stack is gone")
    assert used(**options)[0] == first
