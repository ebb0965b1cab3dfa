"""`Idempotency-Key`: a request that is sent again is billed once."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Account, CostLedger, TierLimiter
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.stores.memory import MemoryStore
from tests.apps import JsonApp, StreamApp, completion, delta, event, usage_of
from tests.driver import Answered, post
from tests.kit import CHAT, STREAM, records_of

ACCOUNTS = {"sk-one": Account("acme"), "sk-two": Account("umbrella")}


class Shop:
    def __init__(self, model: Any, tmp_path: Path, **options: Any) -> None:
        self.path = tmp_path / "ledger.db"
        self.ledger = SqliteLedger(self.path)
        self.app: Any = CostLedger(model, ledger=self.ledger, accounts=ACCOUNTS, **options)

    def run(self, go: Callable[["Shop"], Awaitable[Any]]) -> Any:
        async def story() -> Any:
            try:
                return await go(self)
            finally:
                await self.ledger.aclose()

        return asyncio.run(story())

    async def post(
        self, body: Any = CHAT, *, idempotency_key: str = "k1", key: str = "sk-one", **options: Any
    ) -> Answered:
        headers = [("idempotency-key", idempotency_key)]
        return await post(self.app, body, key=key, headers=headers, **options)


def code_of(answered: Answered) -> str:
    code: str = answered.json["error"]["code"]
    return code


def test_an_answer_that_was_delivered_is_not_made_or_billed_again(tmp_path: Path) -> None:
    model = JsonApp(completion(usage=usage_of(10, 5)))
    shop = Shop(model, tmp_path)

    async def go(shop: Shop) -> None:
        first = await shop.post()
        assert first.status == 200
        again = await shop.post()
        assert (again.status, code_of(again)) == (409, "request_already_completed")
        assert again.headers["x-should-retry"] == "false"
        assert first.headers["request-id"] in again.json["error"]["message"]
        other = await shop.post({**CHAT, "max_tokens": 5})
        assert (other.status, code_of(other)) == (422, "idempotency_key_reused")
        assert (await shop.post(key="sk-two")).status == 200
        assert (await shop.post(idempotency_key="k2")).status == 200

    shop.run(go)
    assert len(model.bodies) == 3
    assert [record["idempotency_key"] for record in records_of(shop.path)] == ["k1", "k1", "k2"]


def test_fifty_equal_requests_at_once_are_one_debit(tmp_path: Path) -> None:
    shop = Shop(JsonApp(completion(usage=usage_of(10, 5))), tmp_path)

    async def go(shop: Shop) -> list[Answered]:
        return list(await asyncio.gather(*(shop.post() for _ in range(50))))

    answers = shop.run(go)
    assert [answered.status for answered in answers].count(200) == 1
    assert {code_of(a) for a in answers if a.status == 409} <= {
        "request_in_progress",
        "request_already_completed",
    }
    assert len(records_of(shop.path)) == 1


def test_one_in_flight_says_when_to_try_again(tmp_path: Path) -> None:
    async def model(scope: Any, receive: Any, send: Any) -> None:
        again = await shop.post()
        assert (again.status, code_of(again)) == (409, "request_in_progress")
        assert again.headers["retry-after"] == "1"
        assert "x-should-retry" not in again.headers
        await JsonApp(completion(usage=usage_of(10, 5)))(scope, receive, send)

    shop = Shop(model, tmp_path)

    async def go(shop: Shop) -> int:
        return (await shop.post()).status

    assert shop.run(go) == 200


def test_what_was_not_delivered_whole_runs_again_linked(tmp_path: Path) -> None:
    failing = True

    async def model(scope: Any, receive: Any, send: Any) -> None:
        answer = JsonApp(completion(usage=usage_of(10, 5)), status=500 if failing else 200)
        await answer(scope, receive, send)

    shop = Shop(model, tmp_path)

    async def go(shop: Shop) -> tuple[Answered, Answered]:
        nonlocal failing
        first = await shop.post()
        failing = False
        return first, await shop.post()

    first, second = shop.run(go)
    assert (first.status, second.status) == (500, 200)
    records = records_of(shop.path)
    assert records[1]["metadata"] == f'{{"retry_of":"{first.headers["request-id"]}"}}'


def test_a_refusal_gives_the_key_back(tmp_path: Path) -> None:
    store = MemoryStore(clock=lambda: 1.0)
    shop = Shop(JsonApp(completion(usage=usage_of(10, 5))), tmp_path)
    shop.app = TierLimiter(shop.app, storage=store)

    async def go(shop: Shop) -> list[int]:
        for number in range(4):
            await shop.post(idempotency_key=f"fill-{number}")
        refused = [(await shop.post()).status for _ in range(2)]
        await shop.ledger.void("nothing")
        return refused

    assert shop.run(go) == [429, 429]  # and never a 409 for what was not served


@pytest.mark.parametrize("key", ["", " ", "x" * 256, "a\tb", "ключ"])
def test_what_is_no_key_is_a_clear_400(key: str, tmp_path: Path) -> None:
    shop = Shop(JsonApp(completion()), tmp_path)

    async def go(shop: Shop) -> Answered:
        return await shop.post(idempotency_key=key)

    answered = shop.run(go)
    assert answered.status == 400
    assert "Idempotency-Key" in answered.json["error"]["message"]


def test_a_stream_is_delivered_whole_or_runs_again(tmp_path: Path) -> None:
    model = StreamApp([event(delta("Hi", finish="stop")), event("[DONE]")])
    shop = Shop(model, tmp_path)

    async def go(shop: Shop) -> list[int]:
        return [(await shop.post(STREAM)).status for _ in range(2)]

    assert shop.run(go) == [200, 409]


class Frozen(SqliteLedger):
    """A ledger that decides about no key, and does not answer who gives one up."""

    async def claim(self, claimed: Any) -> Any:
        raise LedgerUnavailable("it did not answer")

    async def void(self, request_id: str) -> None:
        await asyncio.Event().wait()


def test_who_sends_no_key_does_not_wait_for_those_of_others_to_be_given_up(tmp_path: Path) -> None:
    async def go() -> None:
        ledger = Frozen(tmp_path / "ledger.db")
        model = JsonApp(completion(usage=usage_of(10, 5)))
        app = CostLedger(model, ledger=ledger, accounts=ACCOUNTS)
        refused = await post(app, CHAT, key="sk-one", headers=[("idempotency-key", "k1")])
        assert (refused.status, code_of(refused)) == (503, "ledger_unavailable")
        other = asyncio.create_task(post(app, CHAT, key="sk-one"))
        await asyncio.wait([other], timeout=10)
        assert other.done(), "it waits for the ledger"
        assert other.result().status == 200
        await ledger.aclose()

    asyncio.run(go())
