"""From a request's headers to its account and level."""

import hashlib
from collections.abc import Iterable

from starlette.requests import HTTPConnection
from starlette.types import Scope

from inf_middleware.call.record import Call, Parts, log
from inf_middleware.call.refuse import Refuse
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.tiers import Account

_KEY_HEADERS = (b"x-api-key", b"api-key")


async def identify(call: Call, parts: Parts, scope: Scope) -> None:
    """Find the call's account and level.

    Raises:
        Refuse: The key is missing, unknown or conflicting (401), or the look-up failed (503).
    """
    if parts.lookup is None:
        raise Refuse(
            401,
            "invalid_api_key",
            "This server takes no callers without an account, and has no accounts configured.",
        )
    key = _key_of(scope["headers"])
    try:
        account = _account_of(await parts.lookup(key, HTTPConnection(scope)))
    except Exception as error:
        log.exception("the account look-up failed; the caller got a 503")
        raise Refuse(
            503,
            "accounts_unavailable",
            "The account could not be looked up just now; try again shortly.",
            headers=[(b"retry-after", b"1")],
        ) from error
    if account is None:
        raise _unauthorized(
            "The API key is unknown."
            if key
            else "No API key was given; send one as `Authorization: Bearer <key>`."
        )
    try:
        tier = parts.tiers.of(account)
    except ConfigError as error:
        log.exception("account %r cannot be served; its caller got a 503", account.id)
        raise Refuse(
            503,
            "accounts_unavailable",
            "The account's level is not known here; ask the operator.",
            should_retry=False,
        ) from error
    call.account = account
    call.tier = tier
    call.named = parts.names_accounts
    call.key_id = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()[:12] if key else None


def _account_of(found: object) -> Account | None:
    if found is not None and not isinstance(found, Account):
        raise TypeError(f"it returned a {type(found).__name__}, not an Account")
    return found


def _key_of(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    found: set[bytes] = set()
    for name, value in headers:
        if name == b"authorization":
            scheme, _, credentials = value.partition(b" ")
            if scheme.lower() == b"bearer" and credentials.strip():
                found.add(credentials.strip())
        elif name in _KEY_HEADERS and value.strip():
            found.add(value.strip())
    if len(found) > 1:
        raise _unauthorized(
            "Two different API keys were given; send one, as `Authorization: Bearer <key>`."
        )
    return found.pop().decode("utf-8", "replace") if found else None


def _unauthorized(message: str) -> Refuse:
    return Refuse(401, "invalid_api_key", message, headers=[(b"www-authenticate", b"Bearer")])
