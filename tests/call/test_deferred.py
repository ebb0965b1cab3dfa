"""A response that is made in the background is billed once, however often it is fetched."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Price
from inf_middleware.call.deferred import Deferred
from inf_middleware.ledgers.book import LedgerBook
from tests.apps import event, read_all
from tests.call.test_any_order import cases
from tests.driver import post, scope_of
from tests.kit import House

USAGE = {"input_tokens": 15, "output_tokens": 12}


class Background:
    """Makes responses later: the third time that one is fetched it is there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = self.fetched = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        answer = {"id": self.name, "model": "m", "status": "queued", "usage": None}
        self.asked += scope["method"] == "POST"
        if scope["method"] == "GET":
            self.fetched += 1
            answer["status"] = "in_progress" if self.fetched < 3 else "completed"
            answer["usage"] = USAGE if self.fetched >= 3 else None
        body = json.dumps(answer).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def get(app: Any, path: str, *, key: str) -> Any:
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    await app(scope_of(path, method="GET", key=key), receive, send)
    return json.loads(messages[1]["body"])


@pytest.mark.parametrize(("order", "between"), cases())
def test_a_background_response_is_billed_once_to_who_asked(
    order: Any, between: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name = f"resp_{request.node.name}".replace("[", "-").replace("]", "")
    house = House(Background(name), tmp_path, order=order, between=between)
    body = {"model": "inf-chat-v1", "input": "Hello", "background": True}

    async def go() -> None:
        answered = await post(house.app, body, key="sk-one", path="/v1/responses")
        assert answered.json["status"] == "queued"
        assert house.in_progress("acme") == 0
        for _ in range(6):
            got = await get(house.app, f"/v1/responses/{name}", key="sk-five")
        assert got["usage"] == USAGE
        await house.close()

    asyncio.run(go())
    asked, made = house.records
    assert (asked["amount_nano"], asked["response_id"]) == (0, name)
    assert (made["amount_nano"], made["response_id"]) == (27 * 10_000, name)
    assert (made["account"], made["model"], made["basis"]) == ("acme", "inf-chat-v1", "reported")


@pytest.mark.parametrize(("order", "between"), cases())
def test_what_is_prepaid_is_not_made_in_the_background(
    order: Any, between: Any, tmp_path: Path
) -> None:
    app = Background("resp_prepaid")
    house = House(app, tmp_path, order=order, between=between, mode="prepaid")
    body = {"model": "inf-chat-v1", "input": "Hello", "background": True}

    async def go() -> None:
        await LedgerBook(house.ledger).recharge("acme", "5", reference="start")
        refused = await post(house.app, body, key="sk-one", path="/v1/responses")
        error = refused.json["error"]
        assert (refused.status, error["code"]) == (400, "unsupported_parameter")
        assert error["param"] == "background"
        assert house.in_progress("acme") == 0
        await house.close()

    asyncio.run(go())
    assert app.asked == 0
    assert [record["kind"] for record in house.records] == ["recharge"]


def test_what_costs_nothing_may_be_made_in_the_background_though_prepaid(tmp_path: Path) -> None:
    free = Price("*", "0", "0")
    app = Background("resp_free")
    house = House(app, tmp_path, mode="prepaid", unpriced=free)
    body = {"model": "unheard-of", "input": "Hello", "background": True}

    async def go() -> None:
        asked = await post(house.app, body, key="sk-one", path="/v1/responses")
        assert asked.status == 200
        await house.close()

    asyncio.run(go())


def test_a_response_that_was_billed_at_once_is_not_billed_again_when_fetched(
    tmp_path: Path,
) -> None:
    app = Background("resp_at_once")
    app.fetched = 5
    house = House(app, tmp_path)

    async def go() -> None:
        await get(house.app, "/v1/responses/resp_at_once", key="sk-one")
        await house.close()

    asyncio.run(go())
    assert house.records == []


WORDS = " word" * 40


class Made:
    """Answers whole, or by a stream, and shows another answer to who fetches it."""

    def __init__(self, posted: list[bytes], media: str, fetched: dict[str, Any]) -> None:
        self.posted = posted
        self.media = media
        self.fetched = fetched

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        is_get = scope["method"] == "GET"
        media = "application/json" if is_get else self.media
        headers = [(b"content-type", media.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in [json.dumps(self.fetched).encode()] if is_get else self.posted:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def whole(name: str, **more: Any) -> dict[str, Any]:
    output = [{"type": "message", "content": [{"type": "output_text", "text": WORDS}]}]
    return {"id": name, "model": "m", "status": "completed", "output": output, **more}


def records_after(app: Any, body: dict[str, Any], name: str, tmp_path: Path, **more: Any) -> Any:
    house = House(app, tmp_path)

    async def go() -> None:
        await post(house.app, body, key="sk-one", path="/v1/responses", **more)
        for _ in range(2):
            await get(house.app, f"/v1/responses/{name}", key="sk-one")
        await house.close()

    asyncio.run(go())
    return house.records


def test_a_background_response_without_usage_is_counted_when_it_is_fetched(tmp_path: Path) -> None:
    queued = json.dumps({"id": "resp_count", "model": "m", "status": "queued"}).encode()
    app = Made([queued], "application/json", whole("resp_count"))
    body = {"model": "inf-chat-v1", "input": "Hello, how are you?", "background": True}
    asked, made = records_after(app, body, "resp_count", tmp_path)
    assert asked["amount_nano"] == 0
    assert (made["output_tokens"], made["basis"]) == (40, "counted")
    assert 6 <= made["input_tokens"] <= 16


@pytest.mark.parametrize("usage", [USAGE | {"output_tokens": 60}, None], ids=["told", "counted"])
@pytest.mark.parametrize("leaves", [True, False], ids=["its client leaves", "its server ends it"])
def test_of_a_background_stream_that_was_cut_the_rest_is_billed_when_it_is_fetched(
    leaves: bool, usage: Any, tmp_path: Path
) -> None:
    name = f"resp_cut_{leaves}_{usage is None}"
    told = {"type": "response.output_text.delta", "output_index": 0, "delta": " word"}
    created = {"type": "response.created", "response": {"id": name, "status": "in_progress"}}
    pieces = [event(one) for one in (created, *[told] * 5)]
    app = Made(pieces, "text/event-stream", whole(name, usage=usage))
    body = {"model": "inf-chat-v1", "input": "Hi", "background": True, "stream": True}
    more = {"leave_after": len(pieces)} if leaves else {}
    first, rest = records_after(app, body, name, tmp_path, **more)
    assert first["output_tokens"] == 5
    outputs = first["output_tokens"] + rest["output_tokens"]
    assert outputs == (usage["output_tokens"] if usage else 40)
    assert first["input_tokens"] + rest["input_tokens"] == max(
        first["input_tokens"], usage["input_tokens"] if usage else 0
    )


def test_of_several_who_fetch_at_once_one_is_billed(tmp_path: Path) -> None:
    queued = json.dumps({"id": "resp_race", "model": "m", "status": "queued"}).encode()
    output = [{"type": "message", "content": [{"type": "output_text", "text": WORDS * 100}]}]
    house = House(Made([queued], "application/json", whole("resp_race", output=output)), tmp_path)
    body = {"model": "inf-chat-v1", "input": "Hi", "background": True}

    async def go() -> None:
        await post(house.app, body, key="sk-one", path="/v1/responses")
        path = "/v1/responses/resp_race"
        await asyncio.gather(*(get(house.app, path, key="sk-one") for _ in range(3)))
        await house.close()

    asyncio.run(go())
    assert [record["output_tokens"] for record in house.records] == [0, 4_000]


def test_a_fetch_that_is_cancelled_while_it_is_billed_is_billed_once(tmp_path: Path) -> None:
    queued = json.dumps({"id": "resp_cancel", "model": "m", "status": "queued"}).encode()
    model = Made([queued], "application/json", whole("resp_cancel", usage=USAGE))
    cancels: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while cancels:  # when its bill is on its way, and not committed
            asyncio.get_running_loop().call_soon(cancels.pop())
        await model(scope, receive, send)

    house = House(app, tmp_path)
    body = {"model": "inf-chat-v1", "input": "Hi", "background": True}

    async def go() -> None:
        await post(house.app, body, key="sk-one", path="/v1/responses")
        path = "/v1/responses/resp_cancel"
        fetch = asyncio.create_task(get(house.app, path, key="sk-one"))
        cancels.append(fetch.cancel)
        await asyncio.wait([fetch])
        assert fetch.cancelled()
        await get(house.app, path, key="sk-one")
        await house.close()

    asyncio.run(go())
    assert [record["output_tokens"] for record in house.records] == [0, 12]


def test_another_answer_of_the_same_id_takes_no_fetched_one_off_the_bill(tmp_path: Path) -> None:
    queued = {"id": "resp_same", "model": "m", "status": "queued"}
    made = Made([json.dumps(queued).encode()], "application/json", whole("resp_same", usage=USAGE))
    house = House(made, tmp_path)
    body = {"model": "inf-chat-v1", "input": "Hi"}

    async def go() -> None:
        await post(house.app, {**body, "background": True}, key="sk-one", path="/v1/responses")
        # vLLM lets a client choose the id of its response.
        cheap = whole("resp_same", usage={"input_tokens": 1, "output_tokens": 1})
        made.posted = [json.dumps(cheap).encode()]
        await post(house.app, body, key="sk-one", path="/v1/responses")
        await get(house.app, "/v1/responses/resp_same", key="sk-one")
        await house.close()

    asyncio.run(go())
    assert [record["output_tokens"] for record in house.records] == [0, 1, 12]


def test_two_responses_of_one_id_are_both_billed(tmp_path: Path) -> None:
    # vLLM lets a client choose the id; who is done last is what the next fetch shows.
    queued = json.dumps({"id": "resp_twice", "model": "m", "status": "queued"}).encode()
    made = Made([queued], "application/json", {})
    house = House(made, tmp_path)
    body = {"model": "inf-chat-v1", "input": "Hi", "background": True}

    async def go() -> None:
        for _ in range(2):
            await post(house.app, body, key="sk-one", path="/v1/responses")
        for outputs in (10, 3_000, 3_000):
            usage = {"input_tokens": 4, "output_tokens": outputs}
            made.fetched = whole("resp_twice", usage=usage)
            await get(house.app, "/v1/responses/resp_twice", key="sk-one")
        await house.close()

    asyncio.run(go())
    assert [record["output_tokens"] for record in house.records] == [0, 0, 10, 3_000]


def test_of_a_response_that_is_fetched_as_a_stream_and_left_the_rest_stays_due(
    tmp_path: Path,
) -> None:
    name = "resp_left"
    delta = {"type": "response.output_text.delta", "output_index": 0, "delta": " word"}
    created = {"type": "response.created", "response": {"id": name, "status": "in_progress"}}
    done = {"type": "response.completed", "response": whole(name, usage=USAGE)}
    answers = [[created, *[delta] * 5], [created, *[delta] * 8], [created, *[delta] * 8, done]]

    async def model(scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        media = b"application/json" if scope["method"] == "POST" else b"text/event-stream"
        headers = [(b"content-type", media)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        queued = json.dumps({"id": name, "status": "queued"}).encode()
        events = [event(one) for one in answers.pop(0)] if scope["method"] == "GET" else [queued]
        for piece in events:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        if scope["method"] == "POST" or not answers:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    house = House(model, tmp_path)
    body = {"model": "inf-chat-v1", "input": "Hi", "background": True}

    async def go() -> None:
        await post(house.app, body, key="sk-one", path="/v1/responses")
        for _ in range(3):
            await house.app(
                scope_of(f"/v1/responses/{name}", method="GET", key="sk-one"), nothing, forget
            )
        await house.close()

    asyncio.run(go())
    outputs = [record["output_tokens"] for record in house.records]
    assert outputs == [0, 5, 3, 4]
    inputs = [record["input_tokens"] for record in house.records]
    assert sum(inputs) == 15


def test_a_response_whose_fetch_broke_off_stays_due(tmp_path: Path) -> None:
    fetched = json.dumps(whole("resp_broken", usage=USAGE)).encode()
    breaks = [True, False]

    async def model(scope: Any, receive: Any, send: Any) -> None:
        await read_all(receive)
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["method"] == "POST":
            queued = json.dumps({"id": "resp_broken", "status": "queued"}).encode()
            await send({"type": "http.response.body", "body": queued})
        elif breaks.pop(0):
            await send({"type": "http.response.body", "body": fetched[:-40], "more_body": True})
            raise ConnectionError("the upstream is gone")
        else:
            await send({"type": "http.response.body", "body": fetched})

    house = House(model, tmp_path)
    body = {"model": "inf-chat-v1", "input": "Hi", "background": True}

    async def go() -> None:
        await post(house.app, body, key="sk-one", path="/v1/responses")
        scope = scope_of("/v1/responses/resp_broken", method="GET", key="sk-one")
        with pytest.raises(ConnectionError):
            await house.app(scope, nothing, forget)
        await house.app(scope, nothing, forget)
        await house.close()

    asyncio.run(go())
    assert [record["output_tokens"] for record in house.records] == [0, 12]


async def nothing() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def forget(message: Any) -> None: ...


def test_a_background_stream_that_came_whole_is_billed_once(tmp_path: Path) -> None:
    done = {"type": "response.completed", "response": whole("resp_whole", usage=USAGE)}
    app = Made([event(done)], "text/event-stream", whole("resp_whole", usage=USAGE))
    body = {"model": "inf-chat-v1", "input": "Hi", "background": True, "stream": True}
    (record,) = records_after(app, body, "resp_whole", tmp_path)
    assert (record["input_tokens"], record["output_tokens"]) == (15, 12)


class Reader:
    deferred = True

    def __init__(self, name: str) -> None:
        self.response_id = name


class Deferring:
    body = input_texts = None

    def __init__(self, name: str) -> None:
        self.id = f"call-{name}"
        self.reader = Reader(name)


def test_what_is_waited_for_is_bounded_and_what_is_forgotten_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    waiting = Deferred(calls_max=2)
    for name in ("a", "b", "c"):
        waiting.note(Deferring(name))  # type: ignore[arg-type]
    assert waiting.fetched_by("/v1/responses/a") is None
    assert waiting.fetched_by("/v1/responses/c/") is not None
    assert "call-a is forgotten" in caplog.text
    assert "call-b" not in caplog.text


@pytest.mark.parametrize(("told", "warnings"), [("2", 1), ("1", 0), ("", 0)])
def test_several_workers_are_warned_of_once(
    told: str, warnings: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", told)
    waiting = Deferred()
    for name in ("a", "b"):
        waiting.note(Deferring(name))  # type: ignore[arg-type]
    assert caplog.text.count("billed only where it is fetched from") == warnings
