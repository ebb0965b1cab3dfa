"""The options of TokenMeter hold for its stack, wherever it stands in it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.apps import Asking, JsonApp, completion
from tests.call.test_any_order import cases
from tests.driver import post
from tests.kit import CHAT, STREAM, House, lifespan_through


def of_letters(text: str) -> int:
    return len(text)


def serve(house: House, bodies: list[Any], *, start: bool = False) -> list[Any]:
    async def go() -> list[Any]:
        if start:
            await start_up(house)
        answered = [await post(house.app, body, key="sk-five") for body in bodies]
        await house.close()
        return answered

    return asyncio.run(go())


async def start_up(house: House) -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "lifespan.shutdown" if sent else "lifespan.startup"}

    sent: list[Any] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if message["type"] == "lifespan.startup.complete":
            raise Started

    with pytest.raises(Started):
        await lifespan_through(house.app, receive, send)


class Started(Exception):  # noqa: N818 - ends the lifespan where it has started
    pass


@pytest.mark.parametrize(("order", "between"), cases())
def test_the_counter_of_the_meter_counts(order: Any, between: Any, tmp_path: Path) -> None:
    house = House(
        JsonApp(completion("four")), tmp_path, order=order, between=between, counter=of_letters
    )
    serve(house, [CHAT])
    (message,) = CHAT["messages"]
    letters = len(message["role"]) + len(message["content"]) + 3 + 3
    record = house.record
    assert (record["input_tokens"], record["output_tokens"]) == (letters, 4)


@pytest.mark.parametrize(("order", "between"), cases())
def test_a_meter_that_does_not_ask_is_obeyed(order: Any, between: Any, tmp_path: Path) -> None:
    app = Asking(["Hel", "lo"])
    house = House(app, tmp_path, order=order, between=between, include_usage=False)
    answers = serve(house, [STREAM, STREAM])
    assert [json.loads(body) for body in app.bodies] == [STREAM, STREAM]
    assert [answered.body for answered in answers] == [b"".join(app.frames(asked=False))] * 2
    assert {record["basis"] for record in house.records} == {"counted"}


@pytest.mark.parametrize("start", [False, True], ids=["unstarted", "started"])
@pytest.mark.parametrize(("order", "between"), cases())
def test_the_assumed_output_is_reserved(
    order: Any, between: Any, start: bool, tmp_path: Path
) -> None:
    # Without a lifespan, what stands behind something opaque is known from the first call on.
    app = JsonApp(completion("four"))
    house = House(
        app, tmp_path, order=order, between=between, assumed_output_tokens=5000, counter=of_letters
    )
    answers = serve(house, [CHAT, CHAT], start=start)
    remaining = [int(a.headers["x-ratelimit-remaining-tokens"]) for a in answers]
    (record, _) = house.records
    used = record["input_tokens"] + 4
    assert remaining[1] == 768_000 - used - record["input_tokens"] - 5000
    if start or between is None:
        assert remaining[0] == 768_000 - record["input_tokens"] - 5000
