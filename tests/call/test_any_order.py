"""Promise 7: any order, any subset, something opaque between or not: one call, one bill."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware.base import BaseHTTPMiddleware

from inf_middleware import Account, CostLedger, Gate, Tier, TierLimiter, TokenMeter
from tests.apps import JsonApp, StreamApp, completion, delta, event, usage_chunk, usage_of
from tests.driver import post
from tests.kit import CHAT, ORDER_IDS, ORDERS, STREAM, Closing, House, Opaque

BETWEEN = {"adjacent": None, "opaque": Opaque}


class Raises:
    """Sends two events of a stream, then fails."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for text in ("Hello", " there"):
            piece = event(delta(text))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        raise RuntimeError("the model fell over")


class ListensForDisconnect:
    """Streams until the client leaves, then returns normally, as Starlette does on uvicorn."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        leaving = asyncio.ensure_future(receive())
        while not leaving.done():
            piece = event(delta("word "))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        assert leaving.result()["type"] == "http.disconnect"


def cases() -> list[Any]:
    return [
        pytest.param(order, between, id=f"{name}-{kind}")
        for order, name in zip(ORDERS, ORDER_IDS, strict=True)
        for kind, between in BETWEEN.items()
    ]


@pytest.mark.parametrize(("order", "between"), cases())
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
def test_the_bill_is_the_same_in_every_order(
    order: Any, between: Any, stream: bool, tmp_path: Path
) -> None:
    pieces = [event(delta("Hi", finish="stop")), event(usage_chunk(21, 4)), event("[DONE]")]
    app: Any = StreamApp(pieces) if stream else JsonApp(completion(usage=usage_of(21, 4)))
    house = House(app, tmp_path, order=order, between=between)

    async def go() -> None:
        answered = await post(house.app, STREAM if stream else CHAT, key="sk-one")
        assert answered.status == 200
        assert (USAGE_KEY in answered.body) is not stream
        assert house.in_progress("acme") == 0
        await house.close()

    asyncio.run(go())
    record = house.record
    assert (record["account"], record["tier"]) == ("acme", "Tier1")
    assert (record["input_tokens"], record["output_tokens"]) == (21, 4)
    assert record["amount_nano"] == 25 * 10_000
    assert (record["basis"], record["outcome"]) == ("reported", "complete")
    assert [event.id for event in house.events] == [record["request_id"]]


USAGE_KEY = b'"usage"'


@pytest.mark.parametrize(("order", "between"), cases())
def test_an_app_that_raises_in_a_stream_is_billed_once_for_what_was_sent(
    order: Any, between: Any, tmp_path: Path
) -> None:
    house = House(Raises(), tmp_path, order=order, between=between)

    async def go() -> None:
        with pytest.raises(RuntimeError, match="fell over"):
            await post(house.app, STREAM, key="sk-one")
        assert house.in_progress("acme") == 0
        await house.close()

    asyncio.run(go())
    record = house.record
    assert (record["basis"], record["outcome"]) == ("counted", "upstream_error")
    assert record["output_tokens"] == 2
    assert record["input_tokens"] > 0
    assert len(house.events) == 1


@pytest.mark.parametrize(("order", "between"), cases())
def test_a_client_that_leaves_is_billed_once_for_what_was_produced(
    order: Any, between: Any, tmp_path: Path
) -> None:
    house = House(ListensForDisconnect(), tmp_path, order=order, between=between)

    async def go() -> None:
        answered = await post(house.app, STREAM, key="sk-one", leave_after=3)
        produced = len(answered.bodies)
        assert produced >= 3
        assert house.in_progress("acme") == 0
        await house.close()
        record = house.record
        assert (record["basis"], record["outcome"]) == ("counted", "client_disconnect")
        assert record["output_tokens"] == pytest.approx(produced, abs=2)

    asyncio.run(go())
    assert len(house.events) == 1


@pytest.mark.parametrize(("order", "between"), cases())
def test_a_cancelled_call_is_closed_once_with_what_was_produced(
    order: Any, between: Any, tmp_path: Path
) -> None:
    started = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        piece = event(delta("Hello"))
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        started.set()
        await asyncio.sleep(3600)

    house = House(app, tmp_path, order=order, between=between)

    async def go() -> None:
        task = asyncio.ensure_future(post(house.app, STREAM, key="sk-one"))
        await started.wait()
        assert house.in_progress("acme") == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert house.in_progress("acme") == 0
        await house.close()

    asyncio.run(go())
    record = house.record
    assert (record["output_tokens"], record["basis"]) == (1, "counted")
    assert record["outcome"] == "shutdown"
    assert len(house.events) == 1


class Rewritten:
    """Writes the headers of an answer anew, as lists and with capitals, and lets all else pass."""

    def __init__(self, app: Any) -> None:
        self._hidden = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def through(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [[name.title(), value] for name, value in message["headers"]]
                message = {**message, "headers": headers}
            await send(message)

        await self._hidden(scope, receive, through)


@pytest.mark.parametrize("between", [Opaque, Rewritten])
@pytest.mark.parametrize("order", ORDERS, ids=ORDER_IDS)
def test_a_refusal_names_its_call_once_whoever_refuses(
    order: Any, between: Any, tmp_path: Path
) -> None:
    accounts = {"sk-once": Account("once", tier=Tier("Once", 1, 1, 100_000))}
    app = JsonApp(completion(usage=usage_of(2, 1)))
    house = House(app, tmp_path, order=order, between=between, accounts=accounts)

    async def go() -> None:
        for status in (200, 429):
            answered = await post(house.app, CHAT, key="sk-once")
            assert answered.status == status
            names = [name.lower() for name, _ in answered.header_list]
            assert names.count(b"request-id") == names.count(b"x-request-id") == 1
            assert names.count(b"x-ratelimit-limit-requests") == 1
        await house.close()

    asyncio.run(go())


def test_base_http_middleware_between_and_inside_changes_nothing(tmp_path: Path) -> None:
    class Plain(BaseHTTPMiddleware):
        async def dispatch(self, request: Any, call_next: Any) -> Any:
            return await call_next(request)

    app = Plain(JsonApp(completion(usage=usage_of(21, 4))))
    house = House(app, tmp_path, between=Plain)

    async def go() -> None:
        answered = await post(house.app, CHAT, key="sk-free")
        assert answered.json["usage"]["total_tokens"] == 25
        assert house.in_progress("free-riders") == 0
        await house.close()

    asyncio.run(go())
    assert house.record["amount_nano"] == 25 * 10_000


@pytest.mark.parametrize("kept", [TokenMeter, TierLimiter, CostLedger])
def test_each_works_alone(kept: type, tmp_path: Path) -> None:
    house = House(JsonApp(completion(usage=usage_of(21, 4))), tmp_path, order=[kept])

    async def go() -> int:
        answered = await post(house.app, CHAT, key="sk-one")
        await house.close()
        return answered.status

    assert asyncio.run(go()) == 200
    assert len(house.records) == (1 if kept is CostLedger else 0)


@pytest.mark.parametrize(
    "pair", [(TokenMeter, CostLedger), (CostLedger, TierLimiter), (TierLimiter, TokenMeter)]
)
def test_each_pair_does_the_work_of_its_two_and_no_more(pair: Any, tmp_path: Path) -> None:
    house = House(JsonApp(completion(usage=usage_of(21, 4))), tmp_path, order=pair)

    async def go() -> None:
        answered = await post(house.app, CHAT, key="sk-one")
        assert answered.status == 200
        assert ("x-ratelimit-limit-requests" in answered.headers) is (TierLimiter in pair)
        await house.close()

    asyncio.run(go())
    assert [r["amount_nano"] for r in house.records] == [250_000] * (CostLedger in pair)


def test_gate_is_the_three_as_one(tmp_path: Path) -> None:
    house = House(JsonApp(completion(usage=usage_of(21, 4))), tmp_path, order=[CostLedger])
    gate = Gate(
        Closing(JsonApp(completion(usage=usage_of(21, 4)))),
        accounts={"sk-free": "free"},
        ledger=house.ledger,
        storage=house.store,
        sinks={"mine": house._take},
    )
    house.app = gate

    async def go() -> list[int]:
        statuses = [(await post(gate, CHAT, key="sk-free")).status for _ in range(5)]
        await house.close()
        return statuses

    assert asyncio.run(go()) == [200, 200, 200, 200, 429]
    assert len(house.records) == len(house.events) == 4


def test_a_gate_around_a_stack_joins_it_once(tmp_path: Path) -> None:
    house = House(JsonApp(completion(usage=usage_of(21, 4))), tmp_path)
    house.app = Gate(house.app)

    async def go() -> None:
        assert (await post(house.app, CHAT, key="sk-one")).status == 200
        await house.close()

    asyncio.run(go())
    assert house.record["amount_nano"] == 250_000
