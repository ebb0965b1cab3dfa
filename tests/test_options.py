"""Options: each wrong one a clear error at construction, each right one in force for the stack."""

import asyncio
import logging
import os
import threading
from pathlib import Path
from typing import Any

import limits.aio
import pytest
from starlette.applications import Starlette

from inf_middleware import (
    Account,
    ConfigError,
    CostLedger,
    Gate,
    Price,
    Prices,
    Tier,
    TierLimiter,
    Tiers,
    TokenMeter,
)
from tests.apps import JsonApp, completion, usage_of
from tests.driver import post
from tests.kit import CHAT


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


class Windowed:
    def __init__(self, window_s: Any) -> None:
        self.dedupe_window_s = window_s

    async def __call__(self, events: Any) -> None: ...


WRONG: list[tuple[Any, dict[str, Any], str]] = [
    (TokenMeter, {"tiers": None}, "there is no option tiers"),
    (TokenMeter, {"conter": "x"}, "did you mean counter"),
    (TokenMeter, {"prices": "x"}, "there is no option prices here; it belongs to CostLedger"),
    (CostLedger, {"tiers": "x"}, "there is no option tiers here; it belongs to TierLimiter"),
    (TierLimiter, {"counter": "x"}, "there is no option counter here; it belongs to TokenMeter"),
    (Gate, {"admin_key": "x"}, "there is no option admin_key here; it belongs to admin_routes"),
    (TierLimiter, {"sink": {}}, "there is no option sink"),
    (Gate, {"whatever": 1}, "known are accounts"),
    (Gate, {"accounts": "free"}, 'write such as "accounts.toml" or "sqlite'),
    (Gate, {"accounts": 5}, "give a mapping"),
    (Gate, {"accounts": TokenMeter}, "give a mapping"),
    (Gate, {"accounts": "none.toml"}, "none.toml cannot be read"),
    (Gate, {"accounts_ttl_s": -1}, "from 0 to 3600"),
    (Gate, {"trusted_proxies": "10.0.0.1"}, 'write a list: ["10.0.0.0/8"]'),
    (Gate, {"trusted_proxies": 5}, 'write a list: ["10.0.0.0/8"]'),
    (Gate, {"trusted_proxies": ["proxy.example"]}, "has 'proxy.example'"),
    (Gate, {"anonymous": 5}, "anonymous is 5"),
    (Gate, {"exempt": "/health"}, "must be a list of texts"),
    (Gate, {"body_bytes_max": 0}, "whole number of 1 or more"),
    (Gate, {"body_bytes_max": "8M"}, "whole number of 1 or more"),
    (Gate, {"websockets": "allow"}, '"refuse" or "pass"'),
    (Gate, {"deployment": "a\nb"}, "printable text"),
    (Gate, {"help_url": ""}, "printable text"),
    (Gate, {"log_calls": "yes"}, "must be true or false"),
    (Gate, {"timezone": "Peking"}, "such as UTC or Asia/Shanghai"),
    (CostLedger, {"timezone": "../etc"}, "such as UTC or Asia/Shanghai"),
    (CostLedger, {"timezone": 8}, "printable text"),
    (Gate, {"include_usage": "yes"}, "must be true or false"),
    (Gate, {"assumed_output_tokens": -1}, "whole number of 1 or more"),
    (Gate, {"counter": "gpt-4"}, "shipped encodings are cl100k_base, o200k_base"),
    (Gate, {"tiers": 5}, "give an object, or the path of a TOML file"),
    (Gate, {"tiers": "no-such.toml"}, "no-such.toml cannot be read"),
    (Gate, {"prices": {}}, "give an object, or the path of a TOML file"),
    (Gate, {"storage": "redis://localhost"}, "write host and port: redis://localhost:6379"),
    (Gate, {"storage": "memcached://localhost:11211"}, "redis+cluster://"),
    (Gate, {"storage": "mongodb://me:secret@localhost:27017"}, "'mongodb://…@localhost:27017'"),
    (Gate, {"storage": "localhost:6379"}, "must be memory:// or one of"),
    (Gate, {"storage": "redis+sentinel://localhost:1"}, "cannot open"),
    (Gate, {"storage": None}, "give memory://, a URI such as redis://localhost:6379"),
    (Gate, {"storage": limits.aio.storage.MemoryStorage()}, "a Redis storage of limits.aio"),
    (Gate, {"storage_timeout_s": 0}, "must be more than 0"),
    (Gate, {"on_storage_error": "open"}, '"local" or "refuse" or "admit"'),
    (Gate, {"max_in_flight": 0}, "whole number of 1 or more"),
    (Gate, {"max_wait_s": -1}, "from 0 to 3600"),
    (Gate, {"lease_s": 0.5}, "from 1 to 3600"),
    (Gate, {"enforce": "no"}, "must be true or false"),
    (Gate, {"serves": "inf-chat-v1"}, "must be a list of texts"),
    (Gate, {"unpriced": "free"}, '"record" or "refuse"'),
    (Gate, {"ledger": "inf.db"}, 'write "sqlite:///inf-ledger.db"'),
    (Gate, {"ledger": 5}, "sqlite:///"),
    (Gate, {"mode": "free"}, '"postpaid" or "prepaid"'),
    (Gate, {"sinks": [print]}, "give a mapping"),
    (Gate, {"sinks": {"a": 5}}, "give an async function"),
    (Gate, {"sinks": {"a": Windowed("a day")}}, "dedupe_window_s of sinks['a'] is 'a day'"),
    (Gate, {"sinks": {"a": Windowed(-1)}}, "must be a number of seconds"),
    (Gate, {"sinks": {"a": "kafka://x"}}, 'known are "jsonl:PATH"'),
    (Gate, {"settle_timeout_s": -1}, "from 0 to 3600"),
]


@pytest.mark.parametrize(("cls", "options", "words"), WRONG, ids=[str(w[1]) for w in WRONG])
def test_a_wrong_option_is_refused_at_construction_in_words(
    cls: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        cls(app, **options)
    assert words in str(caught.value)


def test_options_are_keyword_only() -> None:
    for cls in (TokenMeter, TierLimiter, CostLedger, Gate):
        with pytest.raises(TypeError):
            cls(app, {"sk-demo": "free"})  # type: ignore[call-arg]


def test_constructing_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    gate = Gate(app, sinks={"file": "jsonl:events.jsonl"})
    Gate(Starlette(), accounts={"sk-demo": "free"})
    assert gate is not None
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    assert list(tmp_path.iterdir()) == []


def test_an_option_given_to_one_holds_for_the_whole_stack(tmp_path: Path) -> None:
    inner = JsonApp(completion(usage=usage_of(1, 1)))
    ledger = f"sqlite:///{tmp_path}/l.db"
    stack = TokenMeter(
        TierLimiter(CostLedger(inner, ledger=ledger), accounts={"sk-demo": "free"}),
        deployment="eu",
    )

    async def go() -> list[int]:
        return [(await post(stack, CHAT, key=key)).status for key in ("sk-demo", "sk-other")]

    assert asyncio.run(go()) == [200, 401]


def test_two_different_values_of_one_option_are_an_error_at_construction() -> None:
    inner = TierLimiter(app, deployment="eu")
    TokenMeter(inner, deployment="eu")
    with pytest.raises(ConfigError, match="'us' in CostLedger and 'eu' in TierLimiter"):
        CostLedger(inner, deployment="us")


def test_a_level_that_does_not_exist_is_told_when_the_stack_is_built() -> None:
    gate = Gate(app, accounts={"sk-demo": "gold"})
    with pytest.raises(ConfigError, match="there is no tier 'gold'"):
        asyncio.run(post(gate, CHAT, key="sk-demo"))


def test_tiers_and_prices_come_from_files_of_the_operators_own(tmp_path: Path) -> None:
    tiers = tmp_path / "tiers.toml"
    tiers.write_text(
        '[[tier]]\nname = "basic"\nconcurrency = 9\nrequests_per_minute = 9\n'
        "tokens_per_minute = 90000\n"
    )
    prices = tmp_path / "prices.toml"
    prices.write_text('[[price]]\nmodel = "inf-*"\ninput = "1"\noutput = "2"\n')
    inner = JsonApp(completion(usage=usage_of(1, 1)))
    ledger = f"sqlite:///{tmp_path}/l.db"
    gate = Gate(
        inner, tiers=str(tiers), prices=prices, ledger=ledger, accounts={"sk-demo": "Basic"}
    )
    answered = asyncio.run(post(gate, CHAT, key="sk-demo"))
    assert answered.headers["x-ratelimit-limit-requests"] == "9"


def test_one_line_at_start_says_what_is_in_force_and_where_from(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "inf_middleware")
    stack = TokenMeter(TierLimiter(app, accounts={"sk-demo": "free"}), deployment="eu")
    asyncio.run(post(stack, CHAT, key="sk-demo"))
    asyncio.run(post(stack, CHAT, key="sk-demo"))
    (line,) = [r.getMessage() for r in caplog.records if "in force" in r.getMessage()]
    assert "deployment=eu (TokenMeter)" in line
    assert "storage=memory:// (default)" in line
    assert "accounts=… (TierLimiter)" in line
    assert "sk-demo" not in line


def test_token_meter_alone_logs_one_line_per_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "inf_middleware")
    meter = TokenMeter(JsonApp(completion(usage=usage_of(5, 6))))
    asyncio.run(post(meter, {**CHAT, "model": "a\nb"}))
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("call ")]
    assert "model='a\\nb' input_tokens=5 output_tokens=6 basis=reported outcome=complete" in line


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Account(""),
        lambda: Account("a", metadata={"x": object()}),
        lambda: Account("a\ud800"),
        lambda: Account("a", suspended="yes"),  # type: ignore[arg-type]
        lambda: Price("", "1", "1"),
        lambda: Tiers([]),
        lambda: Prices([Price("m", "1", 1.5)]),  # type: ignore[arg-type]
        lambda: Tier("t", 1, 1, 0),
    ],
)
def test_records_that_cannot_hold_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigError):
        bad()


def test_token_meter_alone_logs_a_call_that_its_app_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("bad weights")

    caplog.set_level(logging.INFO, "inf_middleware")
    with pytest.raises(ValueError, match="bad weights"):
        asyncio.run(post(TokenMeter(failing), CHAT))
    (line,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("call ")]
    assert "outcome=upstream_error" in line
