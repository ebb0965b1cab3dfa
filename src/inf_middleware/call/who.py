"""From a request's headers to its account and level."""

import traceback
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

from starlette.requests import HTTPConnection
from starlette.types import Scope

from inf_middleware.call.record import Caller, Parts, log
from inf_middleware.call.refuse import Refuse
from inf_middleware.domain.errors import AccountsUnavailable, ConfigError
from inf_middleware.domain.keys import digest_of, key_of, without_key
from inf_middleware.domain.tiers import Account, Tier, looked_up
from inf_middleware.wire import answers

_KEY_HEADERS = frozenset((b"authorization", b"x-api-key", b"api-key"))


# Callers kept ready; beyond, all are found anew.
CALLERS_MAX = 4096


def known_caller(
    headers: Sequence[tuple[bytes, bytes]], named: Mapping[bytes, bytes], parts: Parts
) -> Caller | None:
    """Find who sends a key that the accounts have at hand, as nearly all do; None: `caller_of`.

    `named` are the headers by name.

    Raises:
        Refuse: Two keys are sent that differ (401), or the level does not exist (503).
    """
    if parts.known is None:
        return None
    bearer = named.get(b"authorization")
    if (
        bearer is None
        or bearer[:7] != b"Bearer "
        or b"x-api-key" in named
        or b"api-key" in named
        or len(named) != len(headers)  # some name came twice
    ):
        raw = raw_key(headers)
    else:
        raw = bearer[7:].strip()
    if not raw:
        return None
    digest = sha256(raw).digest()
    account = parts.known(digest)
    if account is None:
        return None
    caller = parts.callers.get(digest)
    if caller is None or caller[0] is not account:
        if account.suspended or key_of(raw) is None:
            return None
        caller = account, _tier_of(account, parts), digest.hex()[:12]
        if len(parts.callers) >= CALLERS_MAX:
            parts.callers.clear()
        parts.callers[digest] = caller
    return caller


async def caller_of(scope: Scope, parts: Parts) -> Caller:
    """Find the account and level of a request.

    Raises:
        Refuse: The key is missing, unknown, malformed or conflicting (401), too many have failed
            from this network (429), the account is suspended (403), or the look-up failed (503).
    """
    if parts.lookup is None:
        raise Refuse(
            401,
            "invalid_api_key",
            "This server takes no callers without an account, and has no accounts configured.",
        )
    raw = raw_key(scope["headers"])
    key = None if raw is None else key_of(raw)
    connection = HTTPConnection(scope)
    if raw is not None and key is None:
        raise failed_key(parts, connection, "The API key is malformed.")
    account = await _look_up(parts, key, connection)
    if account is None:
        if key is not None:
            raise failed_key(parts, connection, "The API key is unknown.")
        raise _unauthorized("No API key was given; send one as `Authorization: Bearer <key>`.")
    if account.suspended:
        raise Refuse(
            403,
            "account_suspended",
            "The account of this API key is suspended; ask the operator.",
        )
    return account, _tier_of(account, parts), digest_of(key).hex()[:12] if key else None


async def _look_up(parts: Parts, key: str | None, connection: HTTPConnection) -> Account | None:
    assert parts.lookup is not None
    try:
        return looked_up(await parts.lookup(key, connection))
    except Exception as error:
        if not isinstance(error, AccountsUnavailable):  # who raises that has told the operator
            told = traceback.format_exc()
            log.error(
                "the account look-up failed; the caller got a 503\n%s",
                without_key(told, key) if key else told,
            )
        # Without its cause, which may quote the key.
        raise Refuse(
            503,
            "accounts_unavailable",
            "The account could not be looked up just now; try again shortly.",
            headers=answers.retry_headers(1.0),
        ) from None


def _tier_of(account: Account, parts: Parts) -> Tier:
    try:
        return parts.tiers.of(account)
    except ConfigError as error:
        log.exception("account %r cannot be served; its caller got a 503", account.id)
        raise Refuse(
            503,
            "accounts_unavailable",
            "The account's level is not known here; ask the operator.",
            should_retry=False,
        ) from error


def raw_key(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the key that a request sends.

    Raises:
        Refuse: It sends two that differ (401).
    """
    found = None
    for name, value in headers:
        if name not in _KEY_HEADERS:
            continue
        if name == b"authorization":
            scheme, _, credentials = value.partition(b" ")
            key = credentials.strip() if scheme.lower() == b"bearer" else b""
        else:
            key = value.strip()
        if key and found is not None and key != found:
            raise _unauthorized(
                "Two different API keys were given; send one, as `Authorization: Bearer <key>`."
            )
        found = key or found
    return found


def _unauthorized(message: str) -> Refuse:
    return Refuse(401, "invalid_api_key", message, headers=[(b"www-authenticate", b"Bearer")])


def failed_key(parts: Parts, connection: HTTPConnection, message: str) -> Refuse:
    """Count a key that failed, and return the answer to it (401, or 429 where many have)."""
    wait_s = parts.failed_keys.count(parts.network(connection))
    if wait_s is None:
        return _unauthorized(message)
    return Refuse(
        429,
        "too_many_failed_keys",
        f"{message} {parts.failed_keys.per_minute} keys from your network address have failed"
        f" within a minute; the next may be tried in {answers.duration(wait_s)}. A valid key is"
        " taken at any time.",
        headers=answers.retry_headers(wait_s),
    )
