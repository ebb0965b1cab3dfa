"""Promises 2 and 8: a refusal costs nothing, and tells the caller the truth."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from inf_middleware import Account, CostLedger, Price, Tier, TierLimiter
from inf_middleware.domain.errors import LedgerUnavailable
from tests.apps import (
    JsonApp,
    StreamApp,
    completion,
    delta,
    event,
    usage_chunk,
    usage_of,
)
from tests.driver import Answered, post
from tests.kit import CHAT, STREAM, House

TINY = Tier("Tiny", 2, 3, 1_000)
ACCOUNTS = {"sk-tiny": Account("tiny", tier=TINY), "sk-free": "free"}


def house_of(tmp_path: Path, **options: Any) -> House:
    answer = completion(usage=usage_of(10, 5))
    return House(JsonApp(answer), tmp_path, **{"accounts": ACCOUNTS, **options})


def run(house: House, calls: Any) -> Any:
    async def go() -> Any:
        try:
            return await calls()
        finally:
            await house.close()

    return asyncio.run(go())


def error_of(answered: Answered) -> dict[str, Any]:
    body = answered.json
    assert body["type"] == "error"
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert answered.headers["x-request-id"] == answered.headers["request-id"]
    return dict(body["error"])


def test_over_the_requests_of_a_minute_is_a_429_exact_to_the_moment(tmp_path: Path) -> None:
    house = house_of(tmp_path)

    async def calls() -> None:
        for step in range(4):
            house.clock.now += 7.0 * (step > 0)
            assert (await post(house.app, CHAT, key="sk-free")).status == 200
        house.clock.now += 3.123
        refused = await post(house.app, CHAT, key="sk-free")
        assert refused.status == 429
        error = error_of(refused)
        assert error["code"] == "requests_limit_exceeded"
        assert error["type"] == "rate_limit_error"
        for word in ("Free", "4 requests per minute", "4 used", "1 requested"):
            assert word in error["message"]
        wait_ms = int(refused.headers["retry-after-ms"])
        assert wait_ms == 60_000 - 3 * 7_000 - 3_123
        assert refused.headers["retry-after"] == str(-(-wait_ms // 1000))
        assert refused.headers["x-ratelimit-remaining-requests"] == "0"
        assert "x-should-retry" not in refused.headers
        house.clock.now += wait_ms / 1000 - 0.001
        assert (await post(house.app, CHAT, key="sk-free")).status == 429
        house.clock.now += 0.001
        assert (await post(house.app, CHAT, key="sk-free")).status == 200

    run(house, calls)
    assert len(house.records) == 5


def test_over_the_tokens_of_a_minute_is_a_429_exact_to_the_moment(tmp_path: Path) -> None:
    house = house_of(tmp_path)
    large = {**CHAT, "max_tokens": 900}

    async def calls() -> None:
        assert (await post(house.app, large, key="sk-tiny")).status == 200
        house.clock.now += 1.0
        # 15 tokens are settled: 985 are left, and 900 + input fit once more, not with 980.
        refused = await post(house.app, {**CHAT, "max_tokens": 980}, key="sk-tiny")
        assert refused.status == 429
        error = error_of(refused)
        assert error["code"] == "tokens_limit_exceeded"
        for word in ("Tiny", "1,000 tokens per minute", "15 used"):
            assert word in error["message"], error["message"]
        wait_ms = int(refused.headers["retry-after-ms"])
        assert wait_ms == 59_000
        assert (await post(house.app, large, key="sk-tiny")).status == 200
        house.clock.now += wait_ms / 1000 - 0.001
        refused = await post(house.app, {**CHAT, "max_tokens": 980}, key="sk-tiny")
        assert refused.status == 429

    run(house, calls)


def test_a_sequential_client_is_never_refused_for_its_own_last_request(tmp_path: Path) -> None:
    house = house_of(tmp_path)

    async def calls() -> None:
        for _ in range(200):
            assert (await post(house.app, CHAT, key="sk-free")).status == 200
            house.clock.now += 15.0

    run(house, calls)


def test_over_concurrency_is_a_429_with_a_second_that_is_called_an_estimate(
    tmp_path: Path,
) -> None:
    release, entered = asyncio.Event(), asyncio.Event()
    inner = JsonApp(completion(usage=usage_of(10, 5)))

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        entered.set()
        await release.wait()
        await inner(scope, receive, send)

    house = House(slow, tmp_path, accounts=ACCOUNTS)

    async def calls() -> None:
        running = asyncio.ensure_future(post(house.app, CHAT, key="sk-free"))
        await entered.wait()
        refused = await post(house.app, CHAT, key="sk-free")
        assert refused.status == 429
        error = error_of(refused)
        assert error["code"] == "concurrency_limit_exceeded"
        assert "estimate" in error["message"]
        assert refused.headers["retry-after"] == "1"
        assert refused.headers["x-ratelimit-remaining-requests"] == "3"
        release.set()
        assert (await running).status == 200
        assert (await post(house.app, CHAT, key="sk-free")).status == 200

    run(house, calls)
    assert len(house.records) == 2


def test_a_refused_request_takes_nothing_and_makes_no_record(tmp_path: Path) -> None:
    house = house_of(tmp_path)

    async def calls() -> list[str]:
        left = []
        for _ in range(3):
            await post(house.app, {**CHAT, "max_tokens": 100}, key="sk-tiny")
        for _ in range(20):
            refused = await post(house.app, {**CHAT, "max_tokens": 100}, key="sk-tiny")
            assert error_of(refused)["code"] == "requests_limit_exceeded"
            left.append(refused.headers["x-ratelimit-remaining-tokens"])
        return left

    assert set(run(house, calls)) == {str(1_000 - 3 * 15)}
    assert len(house.records) == 3
    assert len(house.events) == 3


def test_input_alone_over_the_level_is_a_400_that_is_not_retried(tmp_path: Path) -> None:
    house = house_of(tmp_path)
    long = {**CHAT, "messages": [{"role": "user", "content": "word " * 1_100}]}
    endless = {**CHAT, "messages": [{"role": "user", "content": "word " * 100_000}]}

    async def calls() -> None:
        for body in (long, endless):
            refused = await post(house.app, body, key="sk-tiny")
            assert refused.status == 400
            assert refused.headers["x-should-retry"] == "false"
            error = error_of(refused)
            assert error["code"] == "tokens_exceed_tier_limit"
            assert "Tiny" in error["message"]
        assert (await post(house.app, CHAT, key="sk-tiny")).headers[
            "x-ratelimit-remaining-requests"
        ] == "2"

    run(house, calls)
    assert len(house.records) == 1


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([], "No API key was given"),
        ([("authorization", "Bearer nonsense")], "unknown"),
        ([("authorization", "Basic c2stZnJlZQ==")], "No API key was given"),
        ([("authorization", "Bearer  ")], "No API key was given"),
        ([("authorization", "Bearer sk-free"), ("x-api-key", "sk-tiny")], "Two different"),
    ],
)
def test_no_unknown_or_conflicting_key_is_a_401_before_the_body_is_read(
    headers: list[tuple[str, str]], message: str, tmp_path: Path
) -> None:
    house = house_of(tmp_path, help_url="https://example.org/keys")

    async def calls() -> Answered:
        return await post(house.app, b"not even json", headers=headers)

    refused = run(house, calls)
    assert refused.status == 401
    error = error_of(refused)
    assert (error["code"], error["type"]) == ("invalid_api_key", "authentication_error")
    assert message in error["message"]
    assert "https://example.org/keys" in error["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert house.app is not None
    assert not house.records


@pytest.mark.parametrize("header", ["authorization", "x-api-key", "api-key"])
def test_a_key_is_taken_from_each_of_its_headers(header: str, tmp_path: Path) -> None:
    house = house_of(tmp_path)
    value = "bearer sk-free" if header == "authorization" else "sk-free"

    async def calls() -> int:
        return (await post(house.app, CHAT, headers=[(header, value)])).status

    assert run(house, calls) == 200


def test_without_accounts_each_network_address_is_one(tmp_path: Path) -> None:
    house = house_of(tmp_path, accounts=None)

    async def calls() -> list[int]:
        hosts = ["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]
        statuses = []
        for host in hosts:
            for _ in range(3):
                answered = await post(house.app, CHAT, client=(host, 1))
                statuses.append(answered.status)
        return statuses

    # Two IPv6 addresses of one /64 share the four requests of the level Free.
    assert run(house, calls) == [200] * 10 + [429] * 2 + [200] * 3
    assert {record["account"] for record in house.records} == {
        "ip:10.0.0.1",
        "ip:10.0.0.2",
        "ip:2001:db8::/64",
        "ip:2001:db8:0:1::/64",
    }


def test_a_look_up_that_fails_is_a_503_and_one_that_knows_nobody_a_401(tmp_path: Path) -> None:
    async def lookup(key: str | None, connection: Any) -> Any:
        if key == "boom":
            raise RuntimeError("the database is away")
        if key == "odd":
            return "free"
        return None if key != "sk-x" else Account(f"x-{connection.headers['x-team']}")

    house = house_of(tmp_path, accounts=lookup)

    async def calls() -> None:
        failed = await post(house.app, CHAT, key="boom")
        assert (failed.status, error_of(failed)["code"]) == (503, "accounts_unavailable")
        assert failed.headers["retry-after"] == "1"
        assert (await post(house.app, CHAT, key="odd")).status == 503
        assert (await post(house.app, CHAT, key="other")).status == 401
        found = await post(house.app, CHAT, key="sk-x", headers=[("x-team", "red")])
        assert found.status == 200

    run(house, calls)
    assert house.record["account"] == "x-red"
    assert house.record["tier"] == "Free"


def test_a_model_that_is_not_served_is_a_404(tmp_path: Path) -> None:
    house = house_of(tmp_path, serves=["inf-chat-fin-v1"])

    async def calls() -> None:
        refused = await post(house.app, CHAT, key="sk-free")
        assert (refused.status, error_of(refused)["code"]) == (404, "model_not_found")
        served = {**CHAT, "model": "inf-chat-fin-v1"}
        assert (await post(house.app, served, key="sk-free")).status == 200

    run(house, calls)


def test_an_unpriced_model_is_recorded_at_nothing_marked_and_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    house = house_of(tmp_path)
    other = {**CHAT, "model": "llama\n3"}

    async def calls() -> None:
        for _ in range(3):
            assert (await post(house.app, other, key="sk-free")).status == 200

    run(house, calls)
    assert [(r["amount_nano"], r["unpriced"], r["input_tokens"]) for r in house.records] == [
        (0, 1, 10)
    ] * 3
    warned = [r.getMessage() for r in caplog.records if "no price" in r.getMessage()]
    assert len(warned) == 1
    assert "\n" not in warned[0]


def test_unpriced_models_can_be_refused_or_given_a_price(tmp_path: Path) -> None:
    other = {**CHAT, "model": "llama"}
    for name, option, expected in (
        ("refuse", "refuse", (404, [])),
        ("price", Price("any", "1", "2"), (200, [10 * 1_000 + 5 * 2_000])),
    ):
        (tmp_path / name).mkdir()
        house = house_of(tmp_path / name, unpriced=option)

        async def calls(house: House = house) -> int:
            return (await post(house.app, other, key="sk-free")).status

        assert (run(house, calls), [r["amount_nano"] for r in house.records]) == expected


def test_everything_but_post_passes_and_exempt_paths_do(tmp_path: Path) -> None:
    house = house_of(tmp_path, exempt=["/tokenize", "/admin/*"])

    async def calls() -> None:
        for method in ("GET", "OPTIONS", "HEAD", "DELETE", "PUT"):
            assert (await post(house.app, b"", method=method)).status == 200
        for path in ("/tokenize", "/admin/reload"):
            answered = await post(house.app, b"", path=path)
            assert answered.status == 200
            assert "x-request-id" not in answered.headers
        assert (await post(house.app, b"{}", path="/other")).status == 401

    run(house, calls)
    assert not house.records


@pytest.mark.parametrize(
    "path",
    [
        "/admin/../v1/chat/completions",
        "/admin/./../v1/chat/completions",
        "/admin/..",
        "/admin/\\..\\v1/chat/completions",
    ],
)
def test_no_path_is_exempt_that_a_server_might_take_for_another(path: str, tmp_path: Path) -> None:
    house = house_of(tmp_path, exempt=["/admin/*"])
    assert run(house, lambda: post(house.app, CHAT, path=path)).status == 401


def test_a_websocket_is_refused_unless_it_is_let_pass() -> None:
    async def connect(app: Any) -> list[str]:
        sent: list[str] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message["type"])

        await app({"type": "websocket", "path": "/v1/realtime", "headers": []}, receive, send)
        return sent

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})

    assert asyncio.run(connect(TierLimiter(app))) == ["websocket.close"]
    assert asyncio.run(connect(TierLimiter(app, websockets="pass"))) == ["websocket.accept"]


class Failing:
    """A ledger that fails so often, and then takes what it is handed."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.settled: list[str] = []

    async def settle(self, event: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise LedgerUnavailable("the disk is away")
        self.settled.append(event.id)

    async def aclose(self) -> None:
        pass


def test_a_ledger_that_fails_for_a_moment_is_tried_again() -> None:
    ledger = Failing(2)
    app = CostLedger(JsonApp(completion(usage=usage_of(10, 5))), ledger=ledger)
    answered = asyncio.run(post(app, CHAT))
    assert answered.status == 200
    assert ledger.settled == [answered.headers["request-id"]]


def test_a_ledger_that_cannot_record_makes_a_503_and_nothing_is_debited_later() -> None:
    ledger = Failing(1)
    app = CostLedger(
        JsonApp(completion(usage=usage_of(10, 5))),
        ledger=ledger,
        settle_timeout_s=0,
        on_ledger_error="refuse",
    )
    refused = asyncio.run(post(app, CHAT))
    assert refused.status == 503
    assert error_of(refused)["code"] == "ledger_unavailable"
    assert (refused.headers["retry-after"], refused.headers["retry-after-ms"]) == ("1", "1000")
    assert ledger.settled == []


def test_a_ledger_that_cannot_record_ends_a_stream_with_an_error_in_its_dialect() -> None:
    ledger = Failing(1)
    pieces = [event(delta("Hi", finish="stop")), event(usage_chunk(9, 1)), event("[DONE]")]
    app = CostLedger(StreamApp(pieces), ledger=ledger, settle_timeout_s=0, on_ledger_error="refuse")
    answered = asyncio.run(post(app, STREAM))
    assert answered.bodies[0] == pieces[0]
    (error,) = answered.bodies[1:]
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "ledger_unavailable"
    assert answered.messages[-1]["more_body"] is False
    assert ledger.settled == []


def test_a_ledger_on_a_path_that_cannot_be_is_a_503(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("")
    app = CostLedger(
        JsonApp(completion(usage=usage_of(10, 5))),
        ledger=f"sqlite:///{tmp_path}/a-file/ledger.db",
        settle_timeout_s=0,
    )
    assert asyncio.run(post(app, CHAT)).status == 503
