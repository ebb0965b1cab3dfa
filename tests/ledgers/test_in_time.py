"""A ledger that neither takes a bill nor fails: an answer's end waits as long as was said."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import BillingEvent, CostLedger
from inf_middleware.domain.errors import BillKept, LedgerUnavailable
from inf_middleware.ledgers.in_time import LOOK_S, WITHIN_S_MIN
from tests.apps import JsonApp, StreamApp, completion, delta, event, usage_of
from tests.driver import Answered, post
from tests.kit import ACCOUNTS, CHAT, STREAM
from tests.ledgers.test_spool import spooled

WITHIN_S = 1.5

# The ledgers of a test.
MADE: "list[Silent]" = []


class Leaping(asyncio.SelectorEventLoop):
    """An event loop whose clock is moved."""

    ahead_s = 0.0

    def time(self) -> float:
        return super().time() + self.ahead_s


def run(go: Callable[[Leaping], Coroutine[Any, Any, None]]) -> None:
    loop = Leaping()

    async def whole() -> None:
        try:
            await go(loop)
        finally:
            while MADE:  # who still waits for one of them would be waited for without end
                MADE.pop().speak()

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(whole())


async def pass_time(loop: Leaping, seconds: float) -> None:
    for _ in range(round(seconds / LOOK_S)):
        loop.ahead_s += LOOK_S
        for _ in range(3):
            await asyncio.sleep(0)


async def waited_for(future: "asyncio.Future[None]") -> None:
    await future


WAYS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "a future": lambda future: future,
    "a coroutine": waited_for,
    "a task": lambda future: asyncio.ensure_future(waited_for(future)),
}


class Silent:
    """A ledger that does not answer until it is told to; then it takes all at once.

    `begun`: it was asked something.
    """

    def __init__(self, folder: Path, way: str = "a future") -> None:
        self.spool_directory = folder
        self.asked: list[asyncio.Future[None]] = []
        self.begun = asyncio.Event()
        self.speaks = False
        self.taken: list[str] = []
        self._way = WAYS[way]
        MADE.append(self)

    def speak(self) -> None:
        """Answer, from here on and to all who wait."""
        self.speaks = True
        for future in self.asked:
            if not future.done():
                future.set_result(None)

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.speaks:
            self.taken.append(event.id)
            future.set_result(None)
        self.asked.append(future)
        self.begun.set()
        return self._way(future)

    async def aclose(self) -> None: ...


async def ask(loop: Leaping, ledger: Silent, **options: Any) -> "asyncio.Task[Answered]":
    """Return a request whose bill has reached the ledger."""
    options = {"settle_timeout_s": WITHIN_S, **options}
    app = CostLedger(JsonApp(completion(usage=usage_of(10, 5))), ledger=ledger, **options)
    asked = loop.create_task(post(app, CHAT))
    await asyncio.wait_for(ledger.begun.wait(), 20)
    return asked


async def answer_to(asked: "asyncio.Task[Answered]") -> Answered:
    await asyncio.wait([asked], timeout=20)
    assert asked.done(), "the answer's end waits for the ledger"
    return asked.result()


@pytest.mark.parametrize("way", WAYS)
def test_a_bill_without_an_answer_is_kept_in_time_and_handed_over_later(
    way: str, tmp_path: Path
) -> None:
    async def go(loop: Leaping) -> None:
        ledger = Silent(tmp_path / "spool", way)
        asked = await ask(loop, ledger)
        await pass_time(loop, WITHIN_S)
        answered = await answer_to(asked)
        assert answered.status == 200
        id_ = answered.headers["x-request-id"]
        assert spooled(ledger.spool_directory) == [id_]
        ledger.speaks = True
        while not ledger.taken:
            await pass_time(loop, 1)
        assert ledger.taken == [id_]

    run(go)


def test_who_hears_of_the_ledger_itself_hears_nothing_of_a_bill_that_is_kept(
    tmp_path: Path,
) -> None:
    async def go(loop: Leaping) -> None:
        ledger = Silent(tmp_path / "spool")
        asked = await ask(loop, ledger)
        await pass_time(loop, WITHIN_S)
        assert (await answer_to(asked)).status == 200
        assert isinstance(ledger.asked[0].exception(), BillKept)

    run(go)


@pytest.mark.parametrize("way", WAYS)
def test_a_ledger_that_answers_in_time_is_waited_for(way: str, tmp_path: Path) -> None:
    async def go(loop: Leaping) -> None:
        ledger = Silent(tmp_path / "spool", way)
        asked = await ask(loop, ledger)
        await pass_time(loop, WITHIN_S - 2 * LOOK_S)
        assert not asked.done()
        ledger.asked[0].set_result(None)
        assert (await answer_to(asked)).status == 200
        await pass_time(loop, WITHIN_S)
        assert not ledger.spool_directory.exists()

    run(go)


def test_a_commit_is_given_a_second_however_little_was_said(tmp_path: Path) -> None:
    async def go(loop: Leaping) -> None:
        ledger = Silent(tmp_path / "spool")
        asked = await ask(loop, ledger, settle_timeout_s=0)
        await pass_time(loop, WITHIN_S_MIN - 2 * LOOK_S)
        assert not asked.done()
        await pass_time(loop, 2 * LOOK_S)
        assert (await answer_to(asked)).status == 200

    run(go)


def test_where_the_event_loop_stood_still_who_was_answered_meanwhile_is_not_late(
    tmp_path: Path,
) -> None:
    async def go(loop: Leaping) -> None:
        ledger = Silent(tmp_path / "spool")
        asked = await ask(loop, ledger)
        loop.ahead_s += 100
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ledger.asked[0].set_result(None)
        assert (await answer_to(asked)).status == 200
        assert not ledger.spool_directory.exists()

    run(go)


@pytest.mark.parametrize("takes", [True, False])
def test_of_a_bill_that_cannot_be_kept_the_ledger_tells_what_became(
    takes: bool, tmp_path: Path
) -> None:
    (tmp_path / "spool").touch()  # where a folder should be

    async def go(loop: Leaping) -> None:
        ledger = Silent(tmp_path / "spool")
        asked = await ask(loop, ledger, settle_timeout_s=0)
        await pass_time(loop, 60)
        tried = [one for one in asyncio.all_tasks() if one.get_name() == "inf-middleware-kept"]
        if tried:  # else it was tried already
            await asyncio.wait(tried)
        await pass_time(loop, 1)
        assert not asked.done()
        if takes:
            ledger.asked[0].set_result(None)
        else:
            ledger.asked[0].set_exception(LedgerUnavailable("away"))
        assert (await answer_to(asked)).status == (200 if takes else 503)

    run(go)


def test_where_no_bill_is_kept_the_ledger_is_waited_for(tmp_path: Path) -> None:
    async def go(loop: Leaping) -> None:
        ledger = Silent(tmp_path / "spool")
        asked = await ask(loop, ledger, on_ledger_error="refuse")
        await pass_time(loop, 60)
        assert not asked.done()
        ledger.asked[0].set_result(None)
        assert (await answer_to(asked)).status == 200

    run(go)


class Holding(Silent):
    """Holds for a call at first, and does not answer who wants more."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)

    async def hold(self, *_: Any) -> None: ...

    async def extend(self, *_: Any) -> None:
        self.begun.set()
        await asyncio.Event().wait()

    async def claim(self, *_: Any) -> None: ...

    async def void(self, *_: Any) -> None: ...


def test_a_hold_that_is_being_extended_is_waited_for_as_long_as_a_settlement(
    tmp_path: Path,
) -> None:
    async def go(loop: Leaping) -> None:
        ledger = Holding(tmp_path / "spool")
        options: Any = {"mode": "prepaid", "on_ledger_error": "spool", "accounts": ACCOUNTS}
        pieces = [event(delta(" word" * 200)), event("[DONE]")]
        model = StreamApp(pieces)
        app = CostLedger(model, ledger=ledger, settle_timeout_s=WITHIN_S, **options)
        asked = loop.create_task(post(app, STREAM, key="sk-one"))
        await ledger.begun.wait()
        await pass_time(loop, 2 * WITHIN_S)
        answered = await answer_to(asked)
        assert answered.bodies == model.messages
        assert spooled(ledger.spool_directory) == [answered.headers["x-request-id"]]

    run(go)
