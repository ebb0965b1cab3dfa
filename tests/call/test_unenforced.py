"""Shadow mode: everything is counted and told, and nobody is refused for a limit."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Account, ConfigError, Tier, TierLimiter
from inf_middleware.domain.errors import LimitsUnavailable
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT, ORDER_IDS, ORDERS, House

TIGHT = {"sk": Account("acme", tier=Tier("Tight", 10, 2, 1_000))}
MODEL = JsonApp(completion(usage=usage_of(10, 5)))
SMALL = {**CHAT, "max_tokens": 10}


async def ask(house: House, count: int, body: Any = SMALL) -> list[Any]:
    answers = [await post(house.app, body, key="sk") for _ in range(count)]
    await house.close()
    return answers


@pytest.mark.parametrize("order", ORDERS, ids=ORDER_IDS)
def test_nobody_is_refused_and_the_event_says_who_would_have_been(
    order: Any, tmp_path: Path
) -> None:
    house = House(MODEL, tmp_path, accounts=TIGHT, enforce=False, order=order)
    answers = asyncio.run(ask(house, 4))
    assert [answer.status for answer in answers] == [200] * 4
    left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
    assert left == ["1", "0", "0", "0"]
    marks = [None, None, "requests_limit_exceeded", "requests_limit_exceeded"]
    assert [record["would_refuse"] for record in house.records] == marks
    assert [event.would_refuse for event in house.events] == marks
    # They are billed as all others.
    assert {record["amount_nano"] for record in house.records} == {150_000}


def test_what_no_level_holds_passes_too(tmp_path: Path) -> None:
    house = House(MODEL, tmp_path, accounts=TIGHT, enforce=False)
    long = {**CHAT, "messages": [{"role": "user", "content": "tea " * 2_000}]}
    (answer,) = asyncio.run(ask(house, 1, long))
    assert answer.status == 200
    assert house.record["would_refuse"] == "tokens_exceed_tier_limit"


def test_a_full_process_serves_on(tmp_path: Path) -> None:
    async def go() -> None:
        begun, ends = asyncio.Semaphore(0), asyncio.Event()

        async def model(scope: Any, receive: Any, send: Any) -> None:
            begun.release()
            await ends.wait()
            await MODEL(scope, receive, send)

        house = House(model, tmp_path, accounts=TIGHT, enforce=False, max_in_flight=1)
        tasks = [asyncio.create_task(post(house.app, SMALL, key="sk")) for _ in range(2)]
        for _ in range(2):
            await begun.acquire()
        ends.set()
        assert [(await task).status for task in tasks] == [200, 200]
        await house.close()
        assert sorted(r["would_refuse"] or "" for r in house.records) == ["", "server_busy"]

    asyncio.run(go())


def test_a_store_that_is_away_refuses_nobody(tmp_path: Path) -> None:
    class Away:
        async def admit(self, ask: Any) -> Any:
            raise LimitsUnavailable("away")

        async def renew(self, held: Any) -> Any: ...

        async def settle(self, admission: Any, tokens: Any) -> None: ...

        async def aclose(self) -> None: ...

    async def statuses(**options: Any) -> tuple[int, str | None]:
        app = TierLimiter(MODEL, storage=Away(), accounts=TIGHT, **options)
        answer = await post(app, SMALL, key="sk")
        return answer.status, answer.headers.get("retry-after")

    assert asyncio.run(statuses(enforce=False)) == (200, None)
    assert asyncio.run(statuses()) == (503, "1")


def test_one_variable_beats_the_option_for_the_emergency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("INF_MIDDLEWARE_ENFORCE", "0")
    with caplog.at_level(logging.WARNING, "inf_middleware"):
        house = House(MODEL, tmp_path, accounts=TIGHT, enforce=True)
        answers = asyncio.run(ask(house, 4))
    assert [answer.status for answer in answers] == [200] * 4
    assert "INF_MIDDLEWARE_ENFORCE=0: nobody is refused for a limit" in caplog.text


def test_so_does_the_file_that_its_twin_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "enforce"
    said.write_text("0\n")
    monkeypatch.setenv("INF_MIDDLEWARE_ENFORCE_FILE", str(said))
    house = House(MODEL, tmp_path, accounts=TIGHT, enforce=True)
    assert [answer.status for answer in asyncio.run(ask(house, 4))] == [200] * 4


def test_the_variable_does_not_enforce_what_an_option_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INF_MIDDLEWARE_ENFORCE", "1")
    house = House(MODEL, tmp_path, accounts=TIGHT, enforce=False)
    assert [answer.status for answer in asyncio.run(ask(house, 3))] == [200] * 3


def test_a_variable_that_is_neither_yes_nor_no_is_an_error_at_construction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INF_MIDDLEWARE_ENFORCE", "maybe")
    with pytest.raises(ConfigError, match="write 0 to refuse nobody, or 1"):
        TierLimiter(MODEL)


@pytest.mark.parametrize(("workers", "warns"), [("4", 1), ("1", 0), ("", 0)])
def test_counting_in_each_of_several_workers_is_warned_of_once(
    workers: str, warns: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", workers)
    app = TierLimiter(MODEL, accounts=TIGHT)
    with caplog.at_level(logging.WARNING, "inf_middleware"):
        for _ in range(2):
            asyncio.run(one(app))
    lines = [r.getMessage() for r in caplog.records if "each worker" in r.getMessage()]
    assert len(lines) == warns
    for line in lines:
        assert 'storage="redis://localhost:6379"' in line


async def one(app: Any) -> None:
    await post(app, SMALL, key="sk")
