"""100,000 callers take bounded memory; refusals take no transactions and few lines of the log."""

import asyncio
import gc
import logging
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Account, TierLimiter, TokenMeter
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT, House, reading

CALLERS = 100_000
ADMITTED = 12_000  # each through everything: ten minutes of them by the test's clock


def address_of(number: int) -> tuple[str, int]:
    """One of as many networks: each has a /64 of its own."""
    return f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1", 50_000


def run(house: House, go: Any) -> None:
    async def story() -> None:
        try:
            await go()
        finally:
            await house.close()

    asyncio.run(story())


def objects() -> int:
    gc.collect()
    return len(gc.get_objects())


def test_100_000_unknown_keys_from_as_many_addresses_take_bounded_memory_and_few_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "inf_middleware")

    async def lookup(key: str | None, connection: Any) -> Account | None:
        return Account("acme", tier="tier5") if key == "sk-good" else None

    house = House(
        JsonApp(completion(usage=usage_of(9, 2))), tmp_path, accounts=lookup, log_calls=True
    )
    kept: list[int] = []

    async def go() -> None:
        for number in range(CALLERS):
            answered = await post(house.app, b"", key=f"guess-{number}", client=address_of(number))
            assert answered.status == 401
            if number in (CALLERS // 2, CALLERS - 1):
                kept.append(objects())
        assert (await post(house.app, CHAT, key="sk-good", client=address_of(0))).status == 200

    run(house, go)
    # What is remembered was full before half of them had come: the other half adds nothing to it.
    assert kept[1] - kept[0] < CALLERS // 100
    assert len(caplog.records) < 500
    assert len(house.records) == 1


def test_ever_new_addresses_are_limited_each_for_itself_and_forgotten_after_their_minute(
    tmp_path: Path,
) -> None:
    house = House(
        JsonApp(completion(usage=usage_of(9, 2))),
        tmp_path,
        order=(TokenMeter, TierLimiter),
        accounts=None,
    )
    most = 0

    async def go() -> None:
        nonlocal most
        for number in range(ADMITTED):
            house.clock.now += 0.05  # twenty a second: 1,200 in a minute
            answered = await post(house.app, CHAT, client=address_of(number))
            assert answered.headers["x-ratelimit-remaining-requests"] == "3"
            most = max(most, len(house.store))

    run(house, go)
    assert most < 1_300


REFUSED: dict[str, tuple[int, dict[str, Any]]] = {
    "unknown key": (401, {"body": CHAT, "key": "sk-none"}),
    "no key": (401, {"body": CHAT}),
    "no JSON": (400, {"body": b"x", "key": "sk-free"}),
    "over requests": (429, {"body": CHAT, "key": "sk-free"}),
    "over tokens": (400, {"body": {**CHAT, "messages": "word " * 40_000}, "key": "sk-free"}),
    "not served": (404, {"body": {**CHAT, "model": "other"}, "key": "sk-free"}),
    "too large": (413, {"body": b" " * 300_001, "key": "sk-free"}),
}


@pytest.mark.parametrize("mode", ["postpaid", "prepaid"])
@pytest.mark.parametrize("kind", REFUSED)
def test_a_flood_of_refused_requests_is_no_transaction_and_a_few_lines(
    kind: str, mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "inf_middleware")
    status, asked = REFUSED[kind]
    flood = 100 if kind == "over tokens" else 500
    model = JsonApp(completion(usage=usage_of(9, 2)))
    accounts = {"sk-free": Account("free", tier="Free", credit_limit="100")}
    house = House(
        model,
        tmp_path,
        accounts=accounts,
        mode=mode,
        serves=["inf-chat-v1"],
        body_bytes_max=300_000,
        log_calls=True,
    )

    async def go() -> None:
        for _ in range(4):
            assert (await post(house.app, CHAT, key="sk-free")).status == 200
        if kind != "over requests":
            house.clock.now += 61.0
        for _ in range(100):  # what follows a settlement, deliveries among it, comes to its end
            await asyncio.sleep(0.01)
            if len(house.events) == 4:
                break
        assert len(house.events) == 4
        caplog.clear()
        with reading(house.path) as db:
            statuses = set()
            versions = set()  # another one after each transaction of anybody else
            for _ in range(flood):
                statuses.add((await post(house.app, **asked)).status)
                versions.add(db.execute("PRAGMA data_version").fetchall()[0])
            # Failed keys from one address are refused in their turn.
            assert statuses == ({401, 429} if kind == "unknown key" else {status})
            # Meanwhile the delivery of the four is noted; a sign of life comes every few seconds.
            assert len(versions) <= 2 + flood // 50
        assert len(caplog.records) <= 5, caplog.text
        assert len(model.bodies) == 4

    run(house, go)
    assert len(house.records) == 4
