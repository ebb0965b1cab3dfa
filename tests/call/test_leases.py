"""Leases: renewed together while requests run, with what they have used; nothing is left behind."""

import asyncio
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import TierLimiter, current_call
from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Admission, Ask, Held, Refusal
from inf_middleware.stores.memory import MemoryStore
from tests.apps import delta, event, read_all
from tests.driver import post
from tests.kit import ACCOUNTS, CHAT, STREAM

LEASE_S = 1.0


class Watched:
    """A store that tells what it is asked."""

    def __init__(self) -> None:
        self.inner = MemoryStore(lease_s=LEASE_S)
        self.renewals: list[list[Held]] = []
        self.lost: frozenset[str] = frozenset()
        self.fails = False
        self.renewed = asyncio.Condition()

    async def admit(self, ask: Ask) -> Admission | Refusal:
        return await self.inner.admit(ask)

    async def renew(self, held: Sequence[Held]) -> frozenset[str]:
        async with self.renewed:
            self.renewals.append(list(held))
            self.renewed.notify_all()
        if self.fails:
            raise LimitsUnavailable("away")
        return self.lost or await self.inner.renew(held)

    async def settle(self, admission: Admission, tokens: int | None) -> None:
        await self.inner.settle(admission, tokens)

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def renews(self, count: int) -> None:
        async with asyncio.timeout(20), self.renewed:
            await self.renewed.wait_for(lambda: len(self.renewals) >= count)


class Telling:
    """A stream that sends three texts, then waits to be ended."""

    def __init__(self) -> None:
        self.sent = asyncio.Event()
        self.ends = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for text in ("one", " two", " three"):
            piece = event(delta(text))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        self.sent.set()
        await self.ends.wait()
        await send({"type": "http.response.body", "body": event("[DONE]")})


def limited(app: Any, store: Any) -> Any:
    return TierLimiter(app, storage=store, lease_s=LEASE_S, accounts=ACCOUNTS)


async def others() -> list[str]:
    return sorted(
        task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()
    )


def test_what_runs_is_renewed_together_with_what_it_has_used() -> None:
    async def go() -> None:
        store, models = Watched(), [Telling() for _ in range(2)]
        started: list[Telling] = []

        async def app_of_the_moment(scope: Any, receive: Any, send: Any) -> None:
            await started[-1](scope, receive, send)

        app = limited(app_of_the_moment, store)
        tasks = []
        for model in models:
            started.append(model)
            tasks.append(asyncio.create_task(post(app, STREAM, key="sk-one")))
            await model.sent.wait()
        before = len(store.renewals)
        await store.renews(before + 2)
        held = store.renewals[-1]
        assert len(held) == 2
        # "Hello, how are you?" is 6 tokens, its role 1, OpenAI's overhead 6; three texts came out.
        assert [used for _, used in held] == [13 + 3] * 2
        for model in models:
            model.ends.set()
        await asyncio.gather(*tasks)

    asyncio.run(go())


def test_a_handler_that_reports_tells_the_renewal_too() -> None:
    async def go() -> None:
        store, told, ends = Watched(), asyncio.Event(), asyncio.Event()

        async def model(scope: Any, receive: Any, send: Any) -> None:
            await read_all(receive)
            current_call(scope).report(input_tokens=100, output_tokens=23)
            told.set()
            await ends.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})

        task = asyncio.create_task(post(limited(model, store), CHAT, key="sk-one"))
        await told.wait()
        await store.renews(len(store.renewals) + 1)
        assert store.renewals[-1][0].used == 123
        ends.set()
        await task

    asyncio.run(go())


def test_nothing_runs_on_after_the_last_call() -> None:
    async def go() -> None:
        store = Watched()
        model = Telling()
        model.ends.set()
        app = limited(model, store)
        before = await others()
        for _ in range(3):
            await post(app, STREAM, key="sk-one")
        # One renewal at the beginning tells that this process lives, one more that it did.
        async with asyncio.timeout(10):
            loop = asyncio.get_running_loop()
            while timers_of(loop) or await others() != before:  # noqa: ASYNC110 - timers tell nobody
                await asyncio.sleep(0.01)
        assert len(store.renewals) <= 3

    asyncio.run(go())


def timers_of(loop: Any) -> list[Any]:
    return [
        handle
        for handle in loop._scheduled
        if not handle.cancelled() and "_renew" in repr(handle._callback)
    ]


def test_a_lost_lease_is_said_once_and_not_renewed_any_more(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def go() -> None:
        store, model = Watched(), Telling()
        task = asyncio.create_task(post(limited(model, store), STREAM, key="sk-one"))
        await model.sent.wait()
        await store.renews(len(store.renewals) + 1)
        store.lost = frozenset({store.renewals[-1][0].admission.call_id})
        await store.renews(len(store.renewals) + 1)
        told = len(store.renewals)
        async with asyncio.timeout(10):
            while timers_of(asyncio.get_running_loop()):  # noqa: ASYNC110 - timers tell nobody
                await asyncio.sleep(0.01)
        assert not any(store.renewals[told:])
        model.ends.set()
        # The request finishes all the same.
        assert (await task).bodies[-1].endswith(b"[DONE]\n\n")

    with caplog.at_level(logging.WARNING, "inf_middleware"):
        asyncio.run(go())
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "1 leases ran out before they were renewed: their requests finish without a slot"
    )


def test_a_renewal_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        store, model = Watched(), Telling()
        task = asyncio.create_task(post(limited(model, store), STREAM, key="sk-one"))
        await model.sent.wait()
        store.fails = True
        await store.renews(len(store.renewals) + 1)
        store.fails = False
        await store.renews(len(store.renewals) + 2)
        assert len(store.renewals[-1]) == 1
        model.ends.set()
        assert (await task).status == 200
        assert store.inner.in_progress("acme") == 0

    with caplog.at_level(logging.WARNING, "inf_middleware"):
        asyncio.run(go())
    assert "could not be renewed: away" in caplog.text


def test_a_stream_longer_than_its_lease_keeps_its_slot() -> None:
    async def go() -> None:
        store, model = Watched(), Telling()
        app = limited(model, store)
        task = asyncio.create_task(post(app, STREAM, key="sk-free"))
        await model.sent.wait()
        begun = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < begun + 2 * LEASE_S:
            await store.renews(len(store.renewals) + 1)
            assert store.inner.in_progress("free-riders") == 1
        refused = await post(app, STREAM, key="sk-free")
        assert json.loads(refused.body)["error"]["code"] == "concurrency_limit_exceeded"
        model.ends.set()
        await task

    asyncio.run(go())


def test_shutting_down_stops_the_renewals(tmp_path: Path) -> None:
    async def go() -> None:
        store, model = Watched(), Telling()
        model.ends.set()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await send({"type": "lifespan.shutdown.complete"})
            else:
                await model(scope, receive, send)

        ours = limited(app, store)
        await post(ours, STREAM, key="sk-one")
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "lifespan.shutdown"}

        async def send(message: Any) -> None:
            sent.append(message)

        await ours({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
        assert sent
        assert timers_of(asyncio.get_running_loop()) == []

    asyncio.run(go())
