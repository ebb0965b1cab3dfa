"""The routes of payment backends: once per reference, exact, by the admin key alone."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.routing import Mount, Route

from inf_middleware import ConfigError, Gate, TierLimiter, admin_routes
from inf_middleware.call.failed_keys import FAILED_KEYS_PER_MINUTE
from inf_middleware.cli import main
from inf_middleware.routes.fields import BODY_BYTES_MAX
from tests.driver import Answered, post
from tests.kit import CHAT, lifespan_through, reading
from tests.ledgers.postgres_server import serving_postgres
from tests.routes.pages import chat

KEY = "admin-" + "0123456789abcdef" * 2
RECHARGE = {"account": "acme", "amount": "500.00", "reference": "alipay:8812"}


class Desk:
    """An app with admin routes beside nothing, and its ledger."""

    def __init__(self, tmp_path: Path, **options: Any) -> None:
        self.path = tmp_path / "l.db"
        options = {"ledger": f"sqlite:///{self.path}", "admin_key": KEY, **options}
        self.app: Any = Starlette(routes=admin_routes(**options))

    async def send(
        self, method: str, path: str, body: Any = None, *, key: str | None = KEY, query: str = ""
    ) -> Answered:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await self.app({**scope, "query_string": query.encode()}, receive, send)

        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body)
        raw = raw.encode() if isinstance(raw, str) else raw
        return await post(app, raw, method=method, path=path, key=key)

    def do(self, method: str, path: str, body: Any = None, **more: Any) -> Answered:
        return asyncio.run(self.send(method, path, body, **more))

    def records(self) -> int:
        if not self.path.exists():
            return 0
        with reading(self.path) as db:
            return int(db.execute("SELECT count(*) FROM request").fetchone()[0])


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def error_of(answered: Answered) -> tuple[int, str, str | None]:
    error = answered.json["error"]
    assert answered.json["type"] == "error"
    assert answered.headers["cache-control"] == "no-store"
    return answered.status, error["code"], error["param"]


def test_a_recharge_is_booked_once_and_the_level_follows(desk: Desk) -> None:
    first = desk.do("POST", "/admin/recharges", RECHARGE)
    assert first.status == 201
    told = first.json
    assert (told["kind"], told["amount"], told["amount_nano"]) == (
        "recharge",
        "500",
        "500000000000",
    )
    assert (told["repeated"], told["reference"]) == (False, "alipay:8812")
    assert told["account"]["tier"] == "Tier1"
    assert told["account"]["balance"] == "500"
    again = desk.do("POST", "/admin/recharges", {**RECHARGE, "amount": "500"})
    assert again.status == 200
    assert again.json == {**told, "repeated": True}
    assert desk.records() == 1


@pytest.mark.parametrize("other", [{"amount": "500.01"}, {"account": "umbrella"}])
def test_a_reference_that_stands_for_something_else_is_a_409(
    desk: Desk, other: dict[str, str]
) -> None:
    desk.do("POST", "/admin/recharges", RECHARGE)
    refused = desk.do("POST", "/admin/recharges", {**RECHARGE, **other})
    assert error_of(refused) == (409, "conflict", None)
    assert "alipay:8812" in refused.json["error"]["message"]
    assert refused.headers["x-should-retry"] == "false"
    assert desk.records() == 1


def test_many_who_book_one_reference_at_once_book_it_once(desk: Desk) -> None:
    async def go() -> list[Answered]:
        return await asyncio.gather(
            *[desk.send("POST", "/admin/recharges", RECHARGE) for _ in range(20)]
        )

    answers = asyncio.run(go())
    assert sorted(one.status for one in answers) == [200] * 19 + [201]
    assert len({one.json["request_id"] for one in answers}) == 1
    assert desk.records() == 1


def test_a_grant_is_balance_and_no_level(desk: Desk) -> None:
    body = {"account": "acme", "amount": "700", "reference": "welcome", "note": "hello"}
    granted = desk.do("POST", "/admin/grants", {**body, "expires_at": "2099-01-01T00:00:00Z"})
    assert granted.status == 201
    assert granted.json["kind"] == "grant"
    account = granted.json["account"]
    assert (account["tier"], account["balance"], account["recharged"]) == ("Free", "700", "0")
    # A reference is one of its kind.
    assert desk.do("POST", "/admin/recharges", {**RECHARGE, "reference": "welcome"}).status == 201


def test_an_account_and_its_keys_live_and_end(desk: Desk) -> None:
    made = desk.do("POST", "/admin/accounts", {"account": "a/b <c>", "metadata": {"n": 1}})
    assert (made.status, made.json["tier"], made.json["metadata"]) == (201, "Free", {"n": 1})
    assert error_of(desk.do("POST", "/admin/accounts", {"account": "a/b <c>"}))[0] == 409
    issued = desk.do("POST", "/admin/keys", {"account": "a/b <c>", "label": "ci"})
    assert issued.status == 201
    assert issued.json["key"].startswith("sk-")
    listed = desk.do("GET", "/admin/keys", query="account=a%2Fb%20%3Cc%3E").json["keys"]
    assert [one["key_id"] for one in listed] == [issued.json["key_id"]]
    assert "key" not in listed[0]
    revoked = desk.do("DELETE", f"/admin/keys/{issued.json['key_id']}")
    assert revoked.json["revoked_at"] is not None
    again = desk.do("DELETE", f"/admin/keys/{issued.json['key_id']}")
    assert again.json == revoked.json
    path = "/admin/accounts/a/b <c>"
    changed = desk.do("PATCH", path, {"suspended": True, "tier": "tier2", "credit_limit": "0"})
    assert changed.json["suspended"] is True
    assert changed.json["tier"] == changed.json["pinned_tier"] == "Tier2"
    assert desk.do("PATCH", path, {"tier": None}).json["pinned_tier"] is None
    assert desk.do("GET", path).json["suspended"] is True


def test_what_is_not_there_is_a_404(desk: Desk) -> None:
    for method, path, body in (
        ("GET", "/admin/accounts/nobody", None),
        ("GET", "/admin/accounts/no\0body", None),
        ("PATCH", "/admin/accounts/nobody", {"suspended": True}),
        ("PATCH", "/admin/accounts/no\0body", {"suspended": True}),
        ("POST", "/admin/keys", {"account": "nobody"}),
        ("DELETE", "/admin/keys/nothing", None),
    ):
        assert error_of(desk.do(method, path, body))[:2] == (404, "not_found"), path


def test_accounts_are_told_in_pages(desk: Desk) -> None:
    for number in range(5):
        desk.do("POST", "/admin/accounts", {"account": f"account-{number}"})
    found, query = [], "limit=2"
    for _ in range(3):
        told = desk.do("GET", "/admin/accounts", query=query).json
        found += [one["account"] for one in told["accounts"]]
        query = f"limit=2&after={told['next']}"
    assert found == [f"account-{number}" for number in range(5)]
    assert told["next"] is None
    odd = ("0", "-1", "1001", "x", "9" * 30, "0" * 9_000 + "5", "0000000019999")
    for limit in (*odd, "\N{ARABIC-INDIC DIGIT ONE}"):
        refused = desk.do("GET", "/admin/accounts", query=f"limit={limit}")
        assert error_of(refused) == (400, "invalid_request_body", "limit")
    assert error_of(desk.do("GET", "/admin/keys"))[2] == "account"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"amount": 500}, "amount"),
        ({"amount": 500.0}, "amount"),
        ({"amount": "1e3"}, "amount"),
        ({"amount": "-5"}, "amount"),
        ({"amount": "0.00"}, "amount"),
        ({"amount": ""}, "amount"),
        ({"amount": None}, "amount"),
        ({"amount": "\uff15"}, "amount"),
        ({"amount": "1_000"}, "amount"),
        ({"amount": "0.0000000001"}, "amount"),
        ({"amount": "NaN"}, "amount"),
        ({"amount": ["1"]}, "amount"),
        ({"account": ""}, "account"),
        ({"account": 5}, "account"),
        ({"account": "a\nb"}, "account"),
        ({"account": "x" * 257}, "account"),
        ({"reference": None}, "reference"),
        ({"reference": "  "}, "reference"),
        ({"reference": 1}, "reference"),
        ({"note": {}}, "note"),
        ({"amuont": "5"}, "amuont"),
    ],
)
def test_a_field_that_cannot_hold_is_a_400_that_names_it(
    desk: Desk, change: dict[str, Any], param: str
) -> None:
    refused = desk.do("POST", "/admin/recharges", {**RECHARGE, **change})
    assert error_of(refused) == (400, "invalid_request_body", param)
    assert desk.records() == 0


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"expires_at": "tomorrow"}, "expires_at"),
        ({"expires_at": "2099-01-01T00:00:00"}, "expires_at"),
        ({"expires_at": 5}, "expires_at"),
        ({"expires_at": "2001-01-01T00:00:00Z"}, None),
    ],
)
def test_a_grant_that_cannot_expire_so_is_a_400(
    desk: Desk, change: dict[str, Any], param: str | None
) -> None:
    refused = desk.do("POST", "/admin/grants", {**RECHARGE, **change})
    assert error_of(refused) == (400, "invalid_request_body", param)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"account": "a", "tier": "Tier99"}, None),
        ({"account": "a", "tier": 5}, "tier"),
        ({"account": "a", "credit_limit": 5.5}, "credit_limit"),
        ({"account": "a", "suspended": "yes"}, "suspended"),
        ({"account": "a", "metadata": []}, "metadata"),
        ({}, "account"),
    ],
)
def test_an_account_that_cannot_be_is_a_400(
    desk: Desk, body: dict[str, Any], param: str | None
) -> None:
    refused = desk.do("POST", "/admin/accounts", body)
    assert error_of(refused) == (400, "invalid_request_body", param)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"x"', b"\xff", b"[" * 20_000, b"null", b'{"account": "\\ud800"}']
)
def test_a_body_that_is_none_is_a_400(desk: Desk, body: bytes) -> None:
    assert error_of(desk.do("POST", "/admin/recharges", body))[:2] == (
        400,
        "invalid_request_body",
    )


def test_a_body_over_its_bound_is_a_413(desk: Desk) -> None:
    body = b" " * (BODY_BYTES_MAX + 1)
    assert error_of(desk.do("POST", "/admin/recharges", body))[:2] == (413, "request_too_large")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.sampled_from(["recharges", "grants", "accounts", "keys"]),
    st.dictionaries(
        st.sampled_from(
            ["account", "amount", "reference", "note", "expires_at", "tier", "metadata", "label"]
        ),
        JSON,
    ),
)
def test_no_body_makes_a_500(desk: Desk, path: str, body: dict[str, Any]) -> None:
    answered = desk.do("POST", f"/admin/{path}", body)
    assert answered.status in (200, 201, 400, 404, 409)


def test_without_the_admin_key_nothing_is_told_or_changed(desk: Desk) -> None:
    for key in (None, "sk-wrong", KEY[:-1], KEY + "x", KEY.upper()):
        for method, path, body in (
            ("POST", "/admin/recharges", RECHARGE),
            ("GET", "/admin/accounts", None),
            ("GET", "/admin/accounts/acme", None),
        ):
            refused = desk.do(method, path, body, key=key)
            assert error_of(refused)[:2] == (401, "invalid_api_key")
            assert KEY not in refused.body.decode()
    assert not desk.path.exists()


def test_who_guesses_admin_keys_is_slowed_down_and_the_right_one_is_taken(desk: Desk) -> None:
    async def go() -> tuple[Answered, Answered]:
        for number in range(FAILED_KEYS_PER_MINUTE):
            refused = await desk.send("GET", "/admin/accounts", key=f"guess-{number}")
            assert refused.status == 401
        return (
            await desk.send("GET", "/admin/accounts", key="guess"),
            await desk.send("GET", "/admin/accounts"),
        )

    guessed, right = asyncio.run(go())
    assert error_of(guessed)[:2] == (429, "too_many_failed_keys")
    assert 0 < int(guessed.headers["retry-after"]) <= 60
    assert right.status == 200


@pytest.mark.parametrize("key", ["short", "x" * 31, " " + "x" * 40, "x" * 40 + "\n", 5, "é\0" * 20])
def test_a_weak_admin_key_is_an_error_that_does_not_show_it(key: Any) -> None:
    with pytest.raises(ConfigError, match="32 or more characters") as caught:
        admin_routes(admin_key=key)
    assert str(key) not in str(caught.value)


def test_without_an_admin_key_there_are_no_routes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="INF_MIDDLEWARE_ADMIN_KEY_FILE"):
        admin_routes()
    (tmp_path / "admin-key").write_text(KEY + "\n")
    monkeypatch.setenv("INF_MIDDLEWARE_ADMIN_KEY_FILE", str(tmp_path / "admin-key"))
    monkeypatch.setenv("INF_MIDDLEWARE_LEDGER", f"sqlite:///{tmp_path}/l.db")
    assert admin_routes()
    shown = CliRunner().invoke(main, ["config", "show"])
    assert shown.exit_code == 0
    assert "admin_key" in shown.output
    assert KEY not in shown.output
    monkeypatch.setenv("INF_MIDDLEWARE_ADMIN_KEY_FILE", "")
    monkeypatch.setenv("INF_MIDDLEWARE_ADMIN_KEY", "weak")
    with pytest.raises(ConfigError, match="INF_MIDDLEWARE_ADMIN_KEY: admin_key must be") as caught:
        admin_routes()
    assert "weak" not in str(caught.value)


def test_inside_a_stack_they_use_its_ledger_and_a_recharge_holds_at_once(tmp_path: Path) -> None:
    ledger = f"sqlite:///{tmp_path}/l.db"
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chat, methods=["POST"]),
            *admin_routes(admin_key=KEY),
        ]
    )
    app.add_middleware(Gate, accounts=ledger, ledger=ledger, mode="prepaid", exempt=["/admin/*"])
    desk = Desk(tmp_path)
    desk.app = app

    async def go() -> None:
        await desk.send("POST", "/admin/accounts", {"account": "acme"})
        key = (await desk.send("POST", "/admin/keys", {"account": "acme"})).json["key"]
        refused = await post(app, CHAT, key=key)
        assert refused.status == 402, refused.body
        recharged = await desk.send("POST", "/admin/recharges", RECHARGE)
        assert recharged.status == 201, recharged.body
        served = await post(app, CHAT, key=key)
        assert served.status == 200, served.body

    asyncio.run(go())


def test_behind_middlewares_that_do_not_exempt_them_the_key_is_unknown(tmp_path: Path) -> None:
    """As docs/admin.md has it: why `exempt` is needed."""
    app = Starlette(routes=admin_routes(admin_key=KEY))
    app.add_middleware(TierLimiter, accounts={"sk-a": "free"})
    desk = Desk(tmp_path)
    desk.app = app
    assert error_of_model(desk.do("POST", "/admin/recharges", RECHARGE)) == (401, "invalid_api_key")


def error_of_model(answered: Answered) -> tuple[int, str]:
    return answered.status, answered.json["error"]["code"]


def test_mounted_under_a_path_of_ones_own(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.app = Starlette(routes=[Mount("/internal", routes=desk.app.routes)])
    assert desk.do("POST", "/internal/admin/recharges", RECHARGE).status == 201


def test_a_ledger_that_is_away_is_a_503_that_may_be_tried_again(desk: Desk) -> None:
    desk.path.write_text("this is no ledger" * 500)
    refused = desk.do("POST", "/admin/recharges", RECHARGE)
    assert error_of(refused)[:2] == (503, "ledger_unavailable")
    assert refused.headers["retry-after"] == "1"


def test_a_stack_without_a_ledger_that_keeps_accounts_is_a_503_that_says_so(
    tmp_path: Path,
) -> None:
    app = Starlette(routes=admin_routes(admin_key=KEY))
    app.add_middleware(TierLimiter, exempt=["/admin/*"])
    desk = Desk(tmp_path)
    desk.app = app
    refused = desk.do("GET", "/admin/accounts")
    assert error_of(refused)[:2] == (503, "ledger_unavailable")
    assert refused.headers["x-should-retry"] == "false"


def test_there_is_nothing_else(desk: Desk) -> None:
    for method, path in (
        ("GET", "/admin"),
        ("GET", "/admin/recharges"),
        ("DELETE", "/admin/accounts/acme"),
        ("POST", "/admin/withdrawals"),
    ):
        assert desk.do(method, path).status in (404, 405)


def test_on_postgresql_it_is_the_same(tmp_path: Path) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": next(lifespan)}

    lifespan = iter(["lifespan.startup", "lifespan.shutdown"])
    with serving_postgres() as server:
        desk = Desk(tmp_path)
        app = Starlette(routes=admin_routes(admin_key=KEY))
        app.add_middleware(Gate, ledger=server.uri(), exempt=["/admin/*"])
        desk.app = app

        async def go() -> tuple[list[Answered], Answered]:
            booked = await asyncio.gather(
                *[desk.send("POST", "/admin/recharges", RECHARGE) for _ in range(5)]
            )
            listed = await desk.send("GET", "/admin/accounts", query="limit=1&after=a")
            await lifespan_through(app, receive, ignore)
            return booked, listed

        booked, listed = asyncio.run(go())
    assert sorted(one.status for one in booked) == [200] * 4 + [201]
    assert [one["account"] for one in listed.json["accounts"]] == ["acme"]


async def ignore(message: Any) -> None:
    """What a server does with what it is not interested in."""
