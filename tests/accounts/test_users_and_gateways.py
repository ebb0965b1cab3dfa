"""Accounts that somebody before us has found: AuthenticationMiddleware, or a trusted gateway."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.authentication import (
    AuthCredentials,
    AuthenticationBackend,
    BaseUser,
    SimpleUser,
    UnauthenticatedUser,
)
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from inf_middleware import Account, ConfigError, Gate, current_call
from inf_middleware.accounts.header import HeaderAccounts
from inf_middleware.accounts.scope import ScopeAccounts
from tests.apps import JsonApp
from tests.driver import post, scope_of
from tests.kit import CHAT


class Cookies(AuthenticationBackend):
    """Finds the user whom a cookie names."""

    async def authenticate(self, conn: HTTPConnection) -> Any:
        name = conn.cookies.get("user")
        return (AuthCredentials(["authenticated"]), SimpleUser(name)) if name else None


class Nobody(BaseUser):
    """A user who is authenticated and cannot be told from others."""

    is_authenticated = True  # type: ignore[assignment]


async def chat(request: Request) -> Response:
    account = current_call(request).account
    assert account is not None
    return JSONResponse({"account": account.id})


def app_of(tmp_path: Path, accounts: Any) -> Starlette:
    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    app.add_middleware(Gate, accounts=accounts, ledger=f"sqlite:///{tmp_path}/l.db")
    return app


def test_the_user_of_authentication_middleware_is_the_account(tmp_path: Path) -> None:
    app = app_of(tmp_path, ScopeAccounts(tier="tier5"))
    app.add_middleware(AuthenticationMiddleware, backend=Cookies())

    async def calls() -> None:
        answered = await post(app, CHAT, headers=[("cookie", "user=ada")])
        assert (answered.status, answered.json) == (200, {"account": "ada"})
        assert answered.headers["x-ratelimit-limit-requests"] == "480"
        assert (await post(app, CHAT)).status == 401
        assert (await post(app, CHAT, key="sk-any")).status == 401

    asyncio.run(calls())


def test_a_function_makes_the_account_of_a_user(tmp_path: Path) -> None:
    def account(user: Any) -> Account | None:
        return None if user.username == "bob" else Account(f"u:{user.username}", recharged="500")

    app = app_of(tmp_path, ScopeAccounts(account=account))
    app.add_middleware(AuthenticationMiddleware, backend=Cookies())

    async def calls() -> None:
        answered = await post(app, CHAT, headers=[("cookie", "user=ada")])
        assert answered.json == {"account": "u:ada"}
        assert answered.headers["x-ratelimit-limit-requests"] == "20"
        assert (await post(app, CHAT, headers=[("cookie", "user=bob")])).status == 401

    asyncio.run(calls())


def test_without_authentication_middleware_the_operator_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answered = asyncio.run(post(app_of(tmp_path, ScopeAccounts()), CHAT))
    assert answered.status == 503
    assert "add AuthenticationMiddleware outside of ours" in caplog.text


def scope_lookup(user: BaseUser) -> Account | None:
    return asyncio.run(ScopeAccounts()(None, HTTPConnection({**scope_of(), "user": user})))


def test_a_user_without_identity_is_never_taken_for_another() -> None:
    assert scope_lookup(UnauthenticatedUser()) is None
    with pytest.raises(ConfigError, match="has no identity"):
        scope_lookup(Nobody())
    with pytest.raises(ConfigError, match="has no identity"):
        scope_lookup(SimpleUser(""))


GATEWAY = ["10.0.0.0/8", "unix"]


def header_lookup(
    *headers: tuple[str, str], peer: tuple[str, int] | None = ("10.0.0.7", 1), **options: Any
) -> Account | None:
    accounts = HeaderAccounts(
        "X-Account", **{"trusted": GATEWAY, "tier_header": "x-tier", "tier": "tier1", **options}
    )
    connection = HTTPConnection(scope_of(headers=headers, client=peer))
    return asyncio.run(accounts("a key that does not matter", connection))


def test_a_trusted_gateway_names_account_and_level() -> None:
    assert header_lookup(("x-account", "acme")) == Account("acme", tier="tier1")
    named = header_lookup(("x-account", "acme"), ("x-tier", "tier3"), peer=None)
    assert named == Account("acme", tier="tier3")
    assert header_lookup(("x-account", "schön")) == Account("schön", tier="tier1")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("x-account", "")],
        [("x-account", "a"), ("x-account", "b")],
        [("x-account", "a"), ("x-tier", "free"), ("x-tier", "tier5")],
        [("x-account", "a" * 257)],
        [("x-account", "a\0")],
    ],
)
def test_what_a_gateway_would_not_send_is_nobody(headers: list[tuple[str, str]]) -> None:
    assert header_lookup(*headers) is None


@pytest.mark.parametrize("peer", [("192.0.2.1", 1), None])
def test_from_others_the_header_is_not_believed_and_warned_of_once(
    peer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    accounts = HeaderAccounts("x-account", trusted=["10.0.0.7"])
    # Forwarded headers make nobody a gateway.
    headers = [("x-account", "acme"), ("x-forwarded-for", "10.0.0.7")]
    connection = HTTPConnection(scope_of(headers=headers, client=peer))
    for _ in range(3):
        assert asyncio.run(accounts(None, connection)) is None
    assert len(caplog.records) == 1
    assert "x-account" in caplog.text
    assert "acme" not in caplog.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"header": "", "trusted": GATEWAY}, "no name of a header"),
        ({"header": "x account", "trusted": GATEWAY}, "no name of a header"),
        ({"header": "x-account", "trusted": []}, "trusted is empty"),
        ({"header": "x-account", "trusted": "10.0.0.7"}, "write a list"),
        ({"header": "x-account", "trusted": ["gateway"]}, "trusted has 'gateway'"),
    ],
)
def test_a_gateway_that_cannot_be_is_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        HeaderAccounts(**options)


def test_levels_of_gateways_and_users_are_seen_when_the_stack_is_built() -> None:
    for accounts in (
        HeaderAccounts("x-account", trusted=GATEWAY, tier="gold"),
        ScopeAccounts(tier="gold"),
    ):
        with pytest.raises(ConfigError, match="there is no tier 'gold'"):
            asyncio.run(post(Gate(JsonApp({}), accounts=accounts), CHAT))


def test_a_user_function_and_a_level_for_all_contradict() -> None:
    with pytest.raises(ConfigError, match="brings its own level"):
        ScopeAccounts(tier="free", account=lambda user: None)
    with pytest.raises(ConfigError, match="give a function"):
        ScopeAccounts(account="ada")  # type: ignore[arg-type]
