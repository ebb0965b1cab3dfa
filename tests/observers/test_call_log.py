"""Lines about calls: one each, in the words of the records, forged by nobody, floods bounded."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inf_middleware import CostLedger, Gate, TierLimiter, TokenMeter
from inf_middleware.domain.observations import RefusedCall, SettledCall
from inf_middleware.domain.usage import Usage
from inf_middleware.observers.logs import REFUSALS_EVERY_S, REFUSED_MAX, CallLog
from tests.apps import JsonApp, StreamApp, completion, delta, event, usage_chunk, usage_of
from tests.driver import post
from tests.kit import CHAT, STREAM, Clock, House, Opaque

NAME = "inf_middleware.calls"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.INFO, NAME)
    return lambda: [record for record in caplog.records if record.name == NAME]


def refused(account: str | None = "acme", code: str = "requests_limit_exceeded") -> RefusedCall:
    return RefusedCall("id-1", "/v1/x", "openai.chat", "m", None, account, "Free", 429, code)


def settled(**changed: Any) -> SettledCall:
    call = SettledCall(
        call_id="id-1",
        endpoint="/v1/chat/completions",
        dialect="openai.chat",
        model="inf-chat-v1",
        listed_model="inf-chat-v1",
        account="acme",
        tier="Tier1",
        usage=Usage(5, 6, reasoning_tokens=2),
        amount_nano=110_000,
        currency="CNY",
        outcome="complete",
        recorded=True,
        would_refuse=None,
        duration_s=0.25,
        first_output_s=0.1,
    )
    return call._replace(**changed)


def test_a_settled_call_and_a_refusal_are_one_line_each_with_the_words_of_the_event(
    tmp_path: Path, lines: Any
) -> None:
    house = House(
        JsonApp(completion(usage=usage_of(5, 6))),
        tmp_path,
        log_calls=True,
    )

    async def go() -> list[int]:
        statuses = [(await post(house.app, CHAT, key="sk-free")).status for _ in range(5)]
        await house.close()
        return statuses

    assert asyncio.run(go()) == [200, 200, 200, 200, 429]
    *settlements, refusal = lines()
    assert len(settlements) == 4
    first = settlements[0]
    record = house.records[0]
    for name in ("account", "tier", "model", "endpoint", "input_tokens", "basis", "outcome"):
        assert getattr(first, name) == record[name], name
    assert first.request_id == record["request_id"]
    assert first.amount == "0.00011"
    assert "account='free-riders' tier='Free' model=" in first.getMessage()
    assert (refusal.code, refusal.status) == ("requests_limit_exceeded", 429)
    assert refusal.getMessage().startswith("refused ")


def test_nothing_is_logged_where_nobody_asked_for_it(tmp_path: Path, lines: Any) -> None:
    house = House(
        JsonApp(completion(usage=usage_of(5, 6))), tmp_path, order=(TokenMeter, CostLedger)
    )

    async def go() -> None:
        await post(house.app, CHAT, key="sk-free")
        await house.close()

    asyncio.run(go())
    assert lines() == []


def test_a_lone_token_meter_can_be_told_to_be_silent(lines: Any) -> None:
    app = JsonApp(completion(usage=usage_of(5, 6)))
    asyncio.run(post(TokenMeter(app, log_calls=False), CHAT))
    assert lines() == []


def test_an_inner_middleware_behind_something_opaque_logs_what_the_outer_one_opened(
    tmp_path: Path, lines: Any
) -> None:
    ledger = f"sqlite:///{tmp_path}/l.db"
    inner = CostLedger(JsonApp(completion(usage=usage_of(5, 6))), ledger=ledger, log_calls=True)
    asyncio.run(post(TierLimiter(Opaque(inner)), CHAT))
    (line,) = lines()
    assert line.amount == "0.00011"


def test_the_time_to_the_first_output_is_that_of_the_first_piece_of_text(lines: Any) -> None:
    pieces = [event(delta("")), event(delta("Hel")), event(delta("lo")), event(usage_chunk(3, 2))]
    app = StreamApp([*pieces, event("[DONE]")])
    answered = asyncio.run(post(TokenMeter(app), STREAM))
    assert answered.body == b"".join([*pieces[:3], event("[DONE]")])
    (line,) = lines()
    assert 0 <= line.first_output_s <= line.duration_s


def test_an_answer_without_output_has_no_first_output(lines: Any) -> None:
    asyncio.run(post(TokenMeter(StreamApp([event("[DONE]")])), STREAM))
    asyncio.run(post(TokenMeter(JsonApp(completion(usage=usage_of(5, 6)))), CHAT))
    assert [line.first_output_s for line in lines()] == [None, None]


def test_neither_key_nor_prompt_is_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gate = Gate(
        JsonApp(completion("SECRET-ANSWER", usage=usage_of(5, 6))),
        accounts={"sk-SECRET-KEY": "free"},
        ledger=f"sqlite:///{tmp_path}/l.db",
        log_calls=True,
    )
    body = {**CHAT, "messages": [{"role": "user", "content": "SECRET-PROMPT"}]}

    async def go() -> None:
        for key in (*["sk-SECRET-KEY"] * 5, "sk-SECRET-OTHER"):
            await post(gate, body, key=key)

    asyncio.run(go())
    assert len([r for r in caplog.records if r.name == NAME]) == 6
    told = "\n".join(f"{r.getMessage()} {vars(r)}" for r in caplog.records if r.name == NAME)
    assert "SECRET" not in told


@given(st.text(), st.text(), st.text())
def test_no_text_of_a_caller_begins_another_line(account: str, model: str, path: str) -> None:
    seen: list[logging.LogRecord] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    logger, handler = logging.getLogger(NAME), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        log = CallLog()
        log.settled(settled(account=account, model=model, endpoint=path))
        log.refused(refused(account)._replace(model=model, endpoint=path))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    assert len(seen) == 2
    for record in seen:
        assert record.getMessage().isascii()
        assert record.getMessage().isprintable()
        for name in ("account", "model", "endpoint"):
            assert getattr(record, name).isprintable()


def test_texts_that_are_fit_to_print_stay_as_they_are(lines: Any) -> None:
    CallLog().settled(settled(account="客户-1"))
    (line,) = lines()
    assert line.account == "客户-1"


def test_a_flood_of_refusals_is_one_line_and_then_a_number(lines: Any) -> None:
    clock = Clock()
    log = CallLog(clock=clock)
    for _ in range(1_000):
        log.refused(refused())
    log.refused(refused(code="tokens_limit_exceeded"))
    assert [line.code for line in lines()] == ["requests_limit_exceeded", "tokens_limit_exceeded"]
    clock.now += REFUSALS_EVERY_S
    log.flush()
    last = lines()[-1]
    assert (last.account, last.code, last.count) == ("acme", "requests_limit_exceeded", 999)
    assert len(lines()) == 3
    log.refused(refused())
    assert len(lines()) == 4


def test_a_flood_from_ever_new_accounts_is_bounded_too(lines: Any) -> None:
    clock = Clock()
    log = CallLog(clock=clock)
    for number in range(10 * REFUSED_MAX):
        log.refused(refused(f"2001:db8:{number:x}::/64"))
    assert len(lines()) == REFUSED_MAX
    clock.now += REFUSALS_EVERY_S
    log.refused(refused("acme"))
    more, last = lines()[REFUSED_MAX:]
    assert (more.count, more.code) == (9 * REFUSED_MAX, "requests_limit_exceeded")
    assert last.account == "acme"


def test_what_is_served_and_not_recorded_or_not_enforced_says_so(lines: Any) -> None:
    CallLog().settled(settled(recorded=False, would_refuse="tokens_limit_exceeded"))
    (line,) = lines()
    assert "recorded=no would_refuse=tokens_limit_exceeded" in line.getMessage()


def test_an_observer_that_fails_stops_no_call(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("the filter is broken")

    caplog.set_level(logging.INFO, NAME)
    logger, broken = logging.getLogger(NAME), Broken()
    logger.addFilter(broken)
    try:
        meter = TokenMeter(JsonApp(completion(usage=usage_of(5, 6))))
        assert asyncio.run(post(meter, CHAT)).status == 200
        assert asyncio.run(post(meter, b"no JSON")).status == 400
    finally:
        logger.removeFilter(broken)
    assert "could not be told" in caplog.text
