"""`GET /account`: who sees what, as JSON and as a page, wherever the routes stand."""

import asyncio
import base64
import threading
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from inf_middleware import (
    Account,
    ConfigError,
    CostLedger,
    Gate,
    Tier,
    TierLimiter,
    TokenMeter,
    account_routes,
)
from inf_middleware.call.failed_keys import FAILED_KEYS_PER_MINUTE
from inf_middleware.ledgers.book import LedgerBook, open_ledger
from inf_middleware.ledgers.sqlite import SqliteLedger
from tests.driver import Answered, post
from tests.events import event_of
from tests.kit import CHAT, Closing, Opaque
from tests.redis_servers import redis_server
from tests.routes.pages import ACCOUNTS, EVIL, build, chat, fill

BROWSER = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8")


async def look(app: Any, key: str | None = "sk-acme", *headers: tuple[str, str]) -> Answered:
    return await post(app, b"", method="GET", path="/account", key=key, headers=headers)


async def ask(app: Any, key: str = "sk-acme", model: str = "inf-chat-v1") -> Answered:
    return await post(app, {**CHAT, "model": model}, key=key)


def limits_of(answered: Answered) -> dict[tuple[str, Any], tuple[int, int]]:
    return {
        (one["limit_of"], one["window_s"]): (one["used"], one["limit"])
        for one in answered.json["limits"]
    }


def routed(*routes: Any) -> Starlette:
    return Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"]), *routes])


def test_the_holder_of_a_key_sees_level_limits_balance_and_usage(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db")

    async def go() -> Answered:
        for model in ("inf-chat-v1", "inf-chat-fin-v1"):
            assert (await ask(app, model=model)).status == 200
        async with await open_ledger(f"sqlite:///{tmp_path}/l.db") as book:
            await book.recharge("acme", "100.25", reference="pay-1")
        return await look(app)

    answered = asyncio.run(go())
    assert answered.status == 200
    assert answered.headers["content-type"] == "application/json"
    assert answered.headers["cache-control"] == "no-store"
    told = answered.json
    assert (told["account"], told["mode"], told["currency"]) == ("acme", "postpaid", "CNY")
    tier = told["tier"]
    assert (tier["name"], tier["pinned"], tier["recharged"]) == ("Tier1", False, "500")
    assert (tier["next"]["name"], tier["next"]["missing"]) == ("Tier2", "2500")
    assert limits_of(answered) == {
        ("concurrency", None): (0, 4),
        ("requests", 60.0): (2, 20),
        ("tokens", 60.0): (3_000, 128_000),
    }
    # 1,500 tokens at ¥10 and 1,500 at ¥20 per 1M.
    assert told["balance"]["balance"] == "100.205"
    assert told["balance"]["balance_nano"] == "100205000000"
    usage = told["usage"]
    assert len(usage["by_day"]) == usage["days"] == 30
    assert sum(day["total_tokens"] for day in usage["by_day"]) == 3_000
    assert [(one["model"], one["amount"]) for one in usage["by_model"]] == [
        ("inf-chat-fin-v1", "0.03"),
        ("inf-chat-v1", "0.015"),
    ]
    assert usage["total"]["requests"] == 2
    assert told["unavailable"] == []


def test_no_account_sees_another(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db")

    async def go() -> Answered:
        assert (await ask(app)).status == 200
        return await look(app, "sk-other")

    told = asyncio.run(go())
    assert told.json["account"] == "umbrella"
    assert told.json["usage"]["total"]["requests"] == 0
    assert limits_of(told)["requests", 60.0] == (0, 480)
    assert b"acme" not in told.body


def test_what_is_asked_for_by_path_query_or_body_changes_nothing(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db")

    async def go() -> list[int]:
        found = []
        for path in ("/account/umbrella", "/account/", "/accounts"):
            answered = await post(app, b"", method="GET", path=path, key="sk-acme")
            found.append(answered.status)
        return found

    assert all(status in (307, 404) for status in asyncio.run(go()))


@pytest.mark.parametrize(
    ("key", "status", "code"),
    [
        (None, 401, "invalid_api_key"),
        ("sk-wrong", 401, "invalid_api_key"),
        ("sk-\N{LATIN SMALL LETTER A}\0", 401, "invalid_api_key"),
        ("sk-gone", 403, "account_suspended"),
    ],
)
def test_who_has_no_valid_key_is_refused_as_json_and_as_a_page(
    tmp_path: Path, key: str | None, status: int, code: str
) -> None:
    app = build(tmp_path / "l.db", help_url="https://help.example")

    async def go() -> tuple[Answered, Answered]:
        return await look(app, key), await look(app, key, BROWSER, ("accept-language", "zh"))

    told, page = asyncio.run(go())
    assert (told.status, page.status) == (status, status)
    error = told.json["error"]
    assert error["code"] == code
    assert ("https://help.example" in error["message"]) is (status == 401)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert code in page.body.decode()
    assert '<html lang="zh">' in page.body.decode()
    for answered in (told, page):
        assert answered.headers["cache-control"] == "no-store"
        assert answered.headers["x-should-retry" if answered is told else "x-request-id"]
    if status == 401:
        assert told.headers["www-authenticate"] == "Bearer"  # no dialog over a script's request
        assert page.headers["www-authenticate"].startswith("Basic ")
    else:
        assert "www-authenticate" not in page.headers


def test_a_page_says_by_headers_that_it_runs_and_loads_nothing(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db")
    for key in ("sk-acme", "sk-wrong"):
        page = asyncio.run(look(app, key, BROWSER))
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert page.headers["cross-origin-resource-policy"] == "same-origin"
        assert "authorization" in page.headers["vary"]
        text = page.body.decode()
        assert "<script" not in text
        assert " style=" not in text


def test_a_key_is_taken_as_a_browser_sends_it(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db")
    sent = base64.b64encode(b"anybody:sk-acme").decode()

    async def go() -> list[Answered]:
        basic = ("authorization", f"Basic {sent}")
        return [
            await look(app, None, basic, BROWSER),
            await look(app, None, ("x-api-key", "sk-acme")),
            await look(app, None, ("api-key", "sk-acme")),
            await look(app, None, basic, ("x-api-key", "sk-other")),
        ]

    page, *told, conflict = asyncio.run(go())
    assert page.status == 200
    assert "acme" in page.body.decode()
    assert [one.json["account"] for one in told] == ["acme", "acme"]
    assert conflict.status == 401


def test_failed_keys_count_together_with_those_of_the_middlewares(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db")

    async def go() -> tuple[Answered, Answered, Answered, Answered]:
        for number in range(FAILED_KEYS_PER_MINUTE):
            guess = f"guess-{number}"
            answered = await (look(app, guess) if number % 2 else ask(app, guess))
            assert answered.status == 401
        bad = base64.b64encode(b"me:no").decode()
        return (
            await look(app, "guess"),
            await ask(app, "guess"),
            await look(app, None, BROWSER, ("authorization", f"Basic {bad}")),
            await look(app),
        )

    told, asked, page, good = asyncio.run(go())
    for refused in (told, asked, page):
        assert refused.status == 429
        assert 0 < int(refused.headers["retry-after"]) <= 60
    assert told.json["error"]["code"] == "too_many_failed_keys"
    assert good.status == 200


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_an_account_named_script_is_a_text(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db")
    fill(tmp_path / "l.db", EVIL, models=[EVIL, "a&b", '"><img src=x onerror=alert(3)>'], days=2)
    page = asyncio.run(look(app, "sk-evil", BROWSER))
    parsed = Texts()
    parsed.feed(page.body.decode())
    assert EVIL in parsed.texts
    assert not parsed.tags & {"script", "img", "b-onmouseover"}
    assert '<b onmouseover="alert(2)">' in parsed.texts
    told = asyncio.run(look(app, "sk-evil")).json
    assert told["account"] == EVIL
    assert told["tier"]["pinned"] is True


def test_an_empty_ledger_is_said_to_be_empty(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db")

    async def go() -> tuple[Answered, Answered, Answered]:
        before = await look(app, "sk-empty", BROWSER)  # no file yet
        assert not (tmp_path / "l.db").exists()
        await ask(app)
        return before, await look(app, "sk-empty", BROWSER), await look(app, "sk-empty")

    before, page, told = asyncio.run(go())
    assert before.status == 200
    assert "No usage is recorded here." in before.body.decode()
    assert "Nothing has been used yet." in page.body.decode()
    assert told.json["balance"]["balance"] == "0"
    assert told.json["usage"]["total"]["total_tokens"] == 0


def test_a_full_ledger_adds_up(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db")
    fill(tmp_path / "l.db", "acme", models=[f"model-{number}" for number in range(12)])
    usage = asyncio.run(look(app)).json["usage"]
    assert len(usage["by_model"]) == 9
    assert usage["by_model"][-1]["model"] is None
    for field in ("requests", "input_tokens", "output_tokens", "amount_nano"):
        by_day = sum(int(day[field]) for day in usage["by_day"])
        by_model = sum(int(model[field]) for model in usage["by_model"])
        assert by_day == by_model == int(usage["total"][field])


def test_without_a_cost_ledger_it_is_said_that_no_usage_is_kept(tmp_path: Path) -> None:
    app = routed(*account_routes())
    app.add_middleware(TokenMeter)
    app.add_middleware(TierLimiter, accounts=ACCOUNTS)

    async def go() -> tuple[Answered, Answered]:
        await ask(app)
        return await look(app), await look(app, "sk-acme", BROWSER)

    told, page = asyncio.run(go())
    assert limits_of(told)["requests", 60.0] == (1, 20)
    assert (told.json["usage"], told.json["balance"], told.json["mode"]) == (None, None, None)
    assert "No usage is recorded here." in page.body.decode()


def test_without_limits_it_is_said_that_nothing_is_limited(tmp_path: Path) -> None:
    app = routed(*account_routes())
    app.add_middleware(CostLedger, accounts=ACCOUNTS, ledger=f"sqlite:///{tmp_path}/l.db")

    async def go() -> tuple[Answered, Answered]:
        await ask(app)
        return await look(app), await look(app, "sk-acme", BROWSER)

    told, page = asyncio.run(go())
    assert told.json["limits"] is None
    assert told.json["usage"]["total"]["requests"] == 1
    assert "Nothing is limited here." in page.body.decode()


def test_stacks_that_something_opaque_parts_are_seen_as_one(tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path}/l.db"
    inner = CostLedger(routed(*account_routes()), accounts=ACCOUNTS, ledger=ledger)
    app = TierLimiter(Opaque(inner))

    async def go() -> Answered:
        await ask(app)
        return await look(app)

    told = asyncio.run(go())
    assert told.json["account"] == "acme"
    assert told.json["usage"]["total"]["requests"] == 1
    assert limits_of(told)["tokens", 60.0][1] > 0


def test_routes_beside_a_stack_share_what_it_uses(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "accounts": ACCOUNTS,
        "ledger": f"sqlite:///{tmp_path}/l.db",
    }
    gated = Gate(routed(), **options)
    app = Starlette(routes=[*account_routes(**options), Mount("/", gated)])

    async def go() -> tuple[Answered, Answered]:
        before = await look(app)  # nobody has used anything yet
        await ask(app)
        return before, await look(app)

    before, told = asyncio.run(go())
    assert limits_of(before)["requests", 60.0] == (0, 20)
    assert before.json["usage"] is None
    assert limits_of(told)["requests", 60.0] == (1, 20)
    assert told.json["usage"]["total"]["requests"] == 1


def test_without_options_settings_say_what_stands_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inf.toml").write_text(
        f'[ledger]\nuri = "sqlite:///{tmp_path}/l.db"\nmode = "prepaid"\n'
        f'[accounts]\nfile = "sqlite:///{tmp_path}/l.db"\n'
    )
    monkeypatch.setenv("INF_MIDDLEWARE_CONFIG", str(tmp_path / "inf.toml"))
    app = Starlette(routes=account_routes())

    async def go() -> tuple[Answered, Answered]:
        async with await open_ledger(f"sqlite:///{tmp_path}/l.db") as book:
            await book.recharge("acme", "600", reference="pay-1")
            await book.set_account("acme", credit_limit="5")
            key = (await book.issue_key("acme")).key
        assert key is not None
        return await look(app, key), await look(app, key, BROWSER)

    told, page = asyncio.run(go())
    assert told.json["tier"]["name"] == "Tier1"
    assert told.json["mode"] == "prepaid"
    assert told.json["balance"]["available"] == "605"
    assert "¥605.00" in page.body.decode()


@pytest.mark.parametrize("beside", [False, True])
def test_levels_in_a_file_are_those_of_now(tmp_path: Path, beside: bool) -> None:
    tiers = tmp_path / "tiers.toml"
    row = '[[tier]]\nname = "free"\nconcurrency = 1\nrequests_per_minute = {}\n'
    row += "tokens_per_minute = 9000\n"
    tiers.write_text(row.format(7))
    options: dict[str, Any] = {"accounts": {"sk-a": "free"}, "tiers": tiers}
    if beside:
        app = Starlette(routes=account_routes(**options))
    else:
        app = routed(*account_routes())
        app.add_middleware(TierLimiter, **options)
    tiers.write_text(row.format(88))
    assert limits_of(asyncio.run(look(app, "sk-a")))["requests", 60.0] == (0, 88)


def test_what_running_requests_hold_is_shown_and_not_to_be_spent(tmp_path: Path) -> None:
    ledger = SqliteLedger(tmp_path / "l.db")
    accounts = {"sk-acme": Account("acme", recharged="500", credit_limit="2")}
    app = build(tmp_path / "l.db", accounts=accounts, mode="prepaid")

    async def go() -> tuple[Answered, Answered]:
        async with LedgerBook(ledger) as book:
            await book.recharge("acme", "10", reference="pay-1")
            assert await ledger.hold(event_of(), 3_500_000_000, 0) is None
            return await look(app), await look(app, "sk-acme", BROWSER)

    told, page = asyncio.run(go())
    balance = told.json["balance"]
    assert (balance["balance"], balance["held"], balance["available"]) == ("10", "3.5", "8.5")
    for shown in ("¥10.00", "¥3.50", "¥2.00", "¥8.50", "Prepaid"):
        assert shown in page.body.decode()


def test_debts_and_further_limits_are_shown(tmp_path: Path) -> None:
    tier = Tier("Own", 2, 10, 100_000, tokens=["5000000/day"], models={"inf-*": {"concurrency": 1}})
    app = build(tmp_path / "l.db", accounts={"sk-acme": Account("acme", tier=tier)})

    async def go() -> tuple[Answered, Answered]:
        await ask(app)
        return await look(app), await look(app, "sk-acme", BROWSER)

    told, page = asyncio.run(go())
    assert [(one["model"], one["limit_of"], one["limit"]) for one in told.json["limits"]] == [
        (None, "concurrency", 2),
        (None, "requests", 10),
        (None, "tokens", 100_000),
        (None, "tokens", 5_000_000),
        ("inf-*", "concurrency", 1),
    ]
    assert told.json["balance"]["balance"] == "-0.015"
    text = page.body.decode()
    for shown in ("\N{MINUS SIGN}¥0.015", "what you owe", "Tokens per day", "for inf-*"):
        assert shown in text


def test_anonymous_callers_see_their_address(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db", accounts=None)
    told = asyncio.run(look(app, None))
    assert told.json["account"] == "ip:127.0.0.1"
    nobody = build(tmp_path / "n.db", accounts=None, anonymous=None)
    assert asyncio.run(look(nobody, None)).status == 401


def test_a_ledger_that_is_away_is_said_to_be_and_the_rest_is_shown(tmp_path: Path) -> None:
    app = build(tmp_path / "l.db")
    (tmp_path / "l.db").write_text("this is no ledger, and longer than a header" * 50)
    told = asyncio.run(look(app))
    assert told.status == 200
    assert told.json["unavailable"] == ["ledger"]
    assert told.json["limits"][0]["limit"] == 4
    page = asyncio.run(look(app, "sk-acme", BROWSER, ("accept-language", "zh-CN")))
    assert "账本暂时无法读取" in page.body.decode()


async def live_and_end(app: Any) -> None:
    """Start an app up and shut it down, as a server does: what it holds is closed."""
    messages = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, Any]:
        return {"type": next(messages)}

    async def send(message: Any) -> None: ...

    await app({"type": "lifespan", "state": {}}, receive, send)


def test_on_redis_every_process_shows_the_same(tmp_path: Path) -> None:
    with redis_server() as server:
        accounts = {"sk-acme": Account("acme", recharged="500")}
        one, two = (
            build(tmp_path / "l.db", accounts=accounts, storage=server.uri, deployment=name)
            for name in ("a", "a")
        )

        async def go() -> tuple[Answered, Answered]:
            await ask(one)
            seen = await look(two)
            server.stop()
            away = await look(two)
            for app in (one, two):
                await live_and_end(app)
            return seen, away

        seen, away = asyncio.run(go())
    assert limits_of(seen)["requests", 60.0] == (1, 20)
    assert away.status == 200  # this process goes on alone, and tells what it knows


def test_a_look_up_that_fails_is_a_503(tmp_path: Path) -> None:
    async def fails(key: Any, connection: Any) -> Account:
        raise OSError("database gone")

    app = build(tmp_path / "l.db", accounts=fails)
    told = asyncio.run(look(app))
    assert (told.status, told.json["error"]["code"]) == (503, "accounts_unavailable")
    page = asyncio.run(look(app, "sk-acme", BROWSER))
    assert page.status == 503
    assert page.headers["retry-after"] == "1"
    assert "Accounts cannot be looked up just now" in page.body.decode()


def test_a_head_and_other_methods(tmp_path: Path) -> None:
    app = Starlette(routes=account_routes(accounts=ACCOUNTS, ledger=f"sqlite:///{tmp_path}/l.db"))

    async def go(method: str) -> Answered:
        return await post(app, b"", method=method, path="/account", key="sk-acme")

    assert asyncio.run(go("HEAD")).status == 200
    assert asyncio.run(go("POST")).status == 405


def test_wrong_options_are_errors_as_the_routes_are_made() -> None:
    with pytest.raises(ConfigError, match="did you mean accounts"):
        account_routes(acounts={})  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="there is no option admin_key"):
        account_routes(admin_key="x" * 32)  # type: ignore[call-arg]


def test_routes_beside_a_stack_do_not_keep_open_what_it_closes(tmp_path: Path) -> None:
    options: dict[str, Any] = {"accounts": ACCOUNTS, "ledger": f"sqlite:///{tmp_path}/shared.db"}
    gated = Gate(Closing(routed()), **options)
    app = Starlette(routes=account_routes(**options))

    def threads() -> list[str]:
        return [one.name for one in threading.enumerate() if "shared.db" in one.name]

    async def go() -> tuple[list[str], list[str]]:
        await ask(gated)
        assert (await look(app)).json["usage"]["total"]["requests"] == 1
        used = threads()
        await gated({"type": "lifespan", "state": {}}, ends, quiet)
        return used, threads()

    async def ends() -> dict[str, Any]:
        return {"type": "lifespan.shutdown"}

    async def quiet(message: Any) -> None: ...

    used, after = asyncio.run(go())
    assert used
    assert after == []
