"""Routes to mount in an app: an account's own page, and its accounts for payment backends."""

from typing import Unpack

from starlette.routing import Route

from inf_middleware.settings import AdminOptions, GateOptions


def account_routes(**options: Unpack[GateOptions]) -> list[Route]:
    """Return `GET /account` for the holder of a key: JSON, or a page where a browser asks.

    Without options they show what the middlewares around them use; where none stand around them, or
    with options, what settings and options say, as for `Gate`.

    Raises:
        ConfigError: An option or setting cannot hold.
    """
    from inf_middleware.routes.account import AccountPage  # noqa: PLC0415 - for those who mount it

    page = AccountPage(options)
    return [Route("/account", page.get, methods=["GET"], name="inf_middleware.account")]


def admin_routes(**options: Unpack[AdminOptions]) -> list[Route]:
    """Return `/admin/recharges`, `/admin/grants`, `/admin/accounts` and `/admin/keys`.

    For payment backends, by `admin_key` alone. Middlewares around them must let them pass:
    `exempt=["/admin/*"]`. The ledger is found as `account_routes` finds it.

    Raises:
        ConfigError: There is no admin key, or an option or setting cannot hold.
    """
    from inf_middleware.routes.admin import Admin  # noqa: PLC0415 - for those who mount it

    return Admin(options).routes()
