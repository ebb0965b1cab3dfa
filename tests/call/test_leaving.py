"""A client that leaves, by each policy: what is billed, and what the app sees."""

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from inf_middleware.call.drain import Drains
from tests.apps import JsonApp, completion, delta, event, read_all, usage_chunk, usage_of
from tests.call.test_any_order import cases
from tests.driver import post, scope_of
from tests.kit import CHAT, STREAM, House

WORDS = [f"word{number} " for number in range(10)]


class Streams:
    """Streams words, one after another, and stops where it hears that its client has left."""

    def __init__(self, *, continuous: bool = False) -> None:
        self.made = 0
        self.heard = False
        self.bodies: list[bytes] = []
        self.continuous = continuous

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.bodies.append(await read_all(receive))
        asked = json.loads(self.bodies[-1]).get("stream_options") or {}
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        leaving = asyncio.ensure_future(receive())
        try:
            for word in WORDS:
                await asyncio.sleep(0)
                if leaving.done():
                    self.heard = True
                    return
                self.made += 1
                more = {}
                if asked.get("continuous_usage_stats"):
                    more["usage"] = usage_of(7, 3 * self.made)
                piece = event(delta(word, **more))
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            for piece in (event(usage_chunk(7, 30)), event("[DONE]")):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()


def leave(house: House, after: int, body: Any = STREAM) -> Any:
    async def go() -> Any:
        answered = await post(house.app, body, key="sk-one", leave_after=after)
        assert house.in_progress("acme") == 0
        await house.close()
        return answered

    return asyncio.run(go())


@pytest.mark.parametrize("after", range(1, 10))
@pytest.mark.parametrize(("order", "between"), cases())
def test_drain_lets_the_app_finish_and_bills_what_the_server_reports(
    order: Any, between: Any, after: int, tmp_path: Path
) -> None:
    if between is not None and after != 4:
        return
    app = Streams()
    house = House(app, tmp_path, order=order, between=between, on_disconnect="drain")
    answered = leave(house, after)
    assert app.made == len(WORDS)
    assert not app.heard
    assert len(answered.bodies) <= after + 1, "the client is gone: nothing is sent any more"
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (7, 30)
    assert (record["basis"], record["outcome"]) == ("reported", "client_disconnect")
    assert record["amount_nano"] == 37 * 10_000
    assert len(house.events) == 1


def test_produced_tells_the_app_and_bills_what_it_made(tmp_path: Path) -> None:
    app = Streams()
    house = House(app, tmp_path)
    leave(house, 4)
    assert app.heard
    assert app.made < len(WORDS)
    record = house.record
    assert (record["basis"], record["outcome"]) == ("counted", "client_disconnect")
    assert record["output_tokens"] >= app.made


@pytest.mark.parametrize(("order", "between"), cases())
def test_continuous_usage_bills_a_cut_stream_exactly_and_hides_it(
    order: Any, between: Any, tmp_path: Path
) -> None:
    app = Streams()
    house = House(app, tmp_path, order=order, between=between, include_usage="continuous")
    answered = leave(house, 4)
    options = json.loads(app.bodies[0])["stream_options"]
    assert options == {"include_usage": True, "continuous_usage_stats": True}
    assert b"usage" not in answered.body
    assert app.heard
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (7, 3 * app.made)
    assert record["basis"] == "reported"


def test_a_whole_stream_of_running_totals_is_as_if_none_had_been_asked_for(tmp_path: Path) -> None:
    app = Streams()
    house = House(app, tmp_path, include_usage="continuous")

    async def go() -> bytes:
        answered = await post(house.app, STREAM, key="sk-one")
        await house.close()
        return answered.body

    sent = asyncio.run(go())
    # The app writes JSON with blanks; ours, without them, is the same.
    compact = [json.loads(one[6:]) for one in sent.split(b"\n\n") if one.startswith(b"data: {")]
    assert compact == [delta(word) for word in WORDS]
    assert sent.endswith(b"data: [DONE]\n\n")
    assert house.record["output_tokens"] == 30


def test_a_server_that_raises_when_the_client_is_gone_is_drained_too(tmp_path: Path) -> None:
    app = Streams()
    house = House(app, tmp_path, on_disconnect="drain")

    async def on_message(message: Any) -> None:
        if b"word4" in message.get("body", b""):
            raise OSError("connection lost")

    async def go() -> None:
        await post(house.app, STREAM, key="sk-one", on_message=on_message)
        await house.close()

    asyncio.run(go())
    assert house.record["output_tokens"] == 30
    assert house.record["outcome"] == "client_disconnect"


class Swallows(Streams):
    """Ends as if all were well, whatever a send raises."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(OSError):
            await super().__call__(scope, receive, send)


@pytest.mark.parametrize(("order", "between"), cases())
def test_where_a_send_that_fails_tells_of_the_client_it_is_noted_whatever_the_app_says(
    order: Any, between: Any, tmp_path: Path
) -> None:
    app = Swallows()
    house = House(app, tmp_path, order=order, between=between)

    async def on_message(message: Any) -> None:
        if b"word4" in message.get("body", b""):
            raise OSError("connection lost")

    async def go() -> None:
        await post(house.app, STREAM, key="sk-one", on_message=on_message, spec_version="2.4")
        await house.close()

    asyncio.run(go())
    record = house.record
    assert (record["basis"], record["outcome"]) == ("counted", "client_disconnect")
    assert app.made == 5
    assert record["output_tokens"] >= app.made


class Waits:
    """Waits until its first client has left, and then answers nothing, or an empty 200."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.then: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.waited:
            await self.then(scope, receive, send)
            return
        self.waited = True
        await read_all(receive)
        heard = await receive()
        assert heard["type"] == "http.disconnect"
        if self.answer is not None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": self.answer})

    waited = False


@pytest.mark.parametrize("answer", [None, b""], ids=["nothing", "an empty 200"])
def test_an_aborted_json_answer_bills_its_input_and_keeps_its_reservation(
    answer: Any, tmp_path: Path
) -> None:
    app = Waits(answer)
    house = House(app, tmp_path)
    body = json.dumps({**CHAT, "max_tokens": 500}).encode()
    messages = [
        {"type": "http.request", "body": body, "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        pass

    async def go() -> int:
        await house.app(scope_of(key="sk-one"), receive, send)
        assert house.in_progress("acme") == 0
        house_then = await post(house.app, CHAT, key="sk-one")
        await house.close()
        return int(house_then.headers["x-ratelimit-remaining-tokens"])

    app.then = JsonApp(completion(usage=usage_of(9, 2)))
    remaining = asyncio.run(go())
    record = house.records[0]
    assert (record["basis"], record["outcome"]) == ("estimated", "client_disconnect")
    counted = record["input_tokens"]
    assert (counted > 6, record["output_tokens"]) == (True, 0)
    assert remaining == 128_000 - (counted + 500) - (counted + 1024)


def test_drains_are_bounded_in_number_and_time(tmp_path: Path) -> None:
    calls: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        calls.append(scope["inf_middleware.call"])

    house = House(app, tmp_path, on_disconnect="drain")

    async def go() -> None:
        for _ in range(3):
            await post(house.app, CHAT, key="sk-one")
        drains = Drains(drains_max=2, timeout_s=0)
        assert [drains.begin(call) for call in calls] == [True, True, False]
        assert drains.begin(calls[0])
        await drains.hide(calls[0])  # no longer than its time
        drains.end(calls[0])
        assert len(drains) == 1
        assert drains.begin(calls[2])

    asyncio.run(go())
