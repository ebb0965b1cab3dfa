"""Routes for payment backends: recharges and grants, accounts and keys; nothing else."""

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import msgspec
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.routing import Route

from inf_middleware import settings
from inf_middleware.call.record import Parts
from inf_middleware.call.refuse import Refuse
from inf_middleware.call.who import failed_key, raw_key
from inf_middleware.domain.books import AccountRecord, KeyRecord, Receipt
from inf_middleware.domain.errors import (
    AlreadyExists,
    BookingRefused,
    ConfigError,
    LedgerUnavailable,
    NotFound,
)
from inf_middleware.domain.money import decimal_string
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.routes.fields import Fields, read_body
from inf_middleware.routes.house import House
from inf_middleware.routes.refusals import Header, refused, request_id

_log = logging.getLogger("inf_middleware.routes")

# Accounts in one answer: some 300 KB.
PAGE_MAX = 1_000
PAGE = 100

# The ledger is tried again by those who ask, after as long.
_RETRY: list[Header] = [(b"retry-after", b"1"), (b"retry-after-ms", b"1000")]

_NO_STORE: list[Header] = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


class Answer(NamedTuple):
    """A status, and what is said as JSON."""

    status: int
    said: dict[str, Any]


Handler: TypeAlias = Callable[[LedgerBook, Request], Awaitable[Answer]]


class Admin:
    """Answers admin requests; each knows the key, or learns nothing.

    Raises:
        ConfigError: There is no admin key, or an option or setting cannot hold.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        others = {name: value for name, value in options.items() if name != "admin_key"}
        self._house = House("admin_routes", others)
        key = options.get("admin_key")
        if key is not None:
            key = settings.check("admin_key", key, ("admin_key",))
        key = key or self._house.beside.admin_key
        if key is None:
            raise ConfigError(
                "admin_routes needs an admin key: give admin_key=…, or set"
                " INF_MIDDLEWARE_ADMIN_KEY_FILE=/run/secrets/admin-key or INF_MIDDLEWARE_ADMIN_KEY;"
                " make one with: openssl rand -hex 32"
            )
        self._digest = hashlib.sha256(key.encode()).digest()

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [
            self._route("POST", "/admin/recharges", _recharge),
            self._route("POST", "/admin/grants", _grant),
            self._route("GET", "/admin/accounts", _accounts),
            self._route("POST", "/admin/accounts", _create_account),
            # Ids may be any text, slashes included.
            self._route("GET", "/admin/accounts/{account:path}", _account),
            self._route("PATCH", "/admin/accounts/{account:path}", _set_account),
            self._route("GET", "/admin/keys", _keys),
            self._route("POST", "/admin/keys", _issue_key),
            self._route("DELETE", "/admin/keys/{key_id}", _revoke_key),
        ]

    def _route(self, method: str, path: str, handler: Handler) -> Route:
        async def endpoint(request: Request) -> Response:
            around = await self._house.of(request.scope)
            parts = around.parts
            named = request_id(parts)
            try:
                self._check(request, parts)
                answer = await _handled(handler, around.ledger, parts, request)
            except Refuse as refuse:
                return refused(refuse, parts, named, _NO_STORE)
            body = msgspec.json.encode(answer.said)
            response = Response(body, answer.status)
            response.raw_headers = [
                (b"content-type", b"application/json"),
                (b"content-length", b"%d" % len(body)),
                (b"x-request-id", named),
                (b"request-id", named),
                *_NO_STORE,
            ]
            return response

        return Route(path, endpoint, methods=[method])

    def _check(self, request: Request, parts: Parts) -> None:
        sent = raw_key(request.scope["headers"])
        if sent is None:
            raise Refuse(
                401,
                "invalid_api_key",
                "No admin key was given; send it as `Authorization: Bearer <key>`.",
                headers=[(b"www-authenticate", b"Bearer")],
            )
        # Of equal length whatever was sent: the time tells nothing.
        if not hmac.compare_digest(hashlib.sha256(sent).digest(), self._digest):
            raise failed_key(parts, HTTPConnection(request.scope), "The admin key is wrong.")


async def _handled(handler: Handler, ledger: Any, parts: Parts, request: Request) -> Answer:
    if not isinstance(ledger, LedgerBase):
        raise Refuse(
            503,
            "ledger_unavailable",
            "No ledger here keeps accounts; give admin_routes, or the CostLedger around it, the URI"
            " of one.",
            should_retry=False,
        )
    book = LedgerBook(
        ledger,
        tiers=parts.tiers,
        currency=parts.prices.currency,
        deployment=parts.deployment,
        now_ns=parts.now_ns,
    )
    try:
        return await handler(book, request)
    except NotFound as error:
        raise Refuse(404, "not_found", str(error)) from error
    except AlreadyExists as error:
        raise Refuse(409, "conflict", str(error), should_retry=False) from error
    except (BookingRefused, ConfigError) as error:
        raise Refuse(400, "invalid_request_body", str(error)) from error
    except LedgerUnavailable as error:
        _log.error("an admin request failed, and booked nothing: %s", error)
        raise Refuse(
            503,
            "ledger_unavailable",
            "The ledger cannot be reached just now; try again with the same reference.",
            headers=_RETRY,
        ) from error


async def _recharge(book: LedgerBook, request: Request) -> Answer:
    fields = Fields(await read_body(request), ("account", "amount", "reference", "note"))
    receipt = await book.recharge(
        fields.account(),
        fields.amount("amount"),
        reference=fields.text("reference"),
        note=fields.text_or_none("note"),
    )
    return _booked(receipt)


async def _grant(book: LedgerBook, request: Request) -> Answer:
    known = ("account", "amount", "reference", "note", "expires_at")
    fields = Fields(await read_body(request), known)
    receipt = await book.grant(
        fields.account(),
        fields.amount("amount"),
        reference=fields.text("reference"),
        note=fields.text_or_none("note"),
        expires=fields.moment_or_none("expires_at"),
    )
    return _booked(receipt)


def _page_of(wanted: str) -> int:
    """Return a number that a page may have; 0 for another, or what is none."""
    is_short = len(wanted) <= len(str(PAGE_MAX))
    return int(wanted) if is_short and wanted.isascii() and wanted.isdigit() else 0


async def _accounts(book: LedgerBook, request: Request) -> Answer:
    after, wanted = request.query_params.get("after", ""), request.query_params.get("limit", "")
    count = _page_of(wanted) if wanted else PAGE
    if not 1 <= count <= PAGE_MAX:
        raise Refuse(
            400, "invalid_request_body", f"limit must be from 1 to {PAGE_MAX:,}", param="limit"
        )
    if "\0" in after:
        raise Refuse(400, "invalid_request_body", "after is no account's id", param="after")
    found = await book.accounts(after=after, count_max=count + 1)
    return Answer(
        200,
        {
            "accounts": [_account_record(one) for one in found[:count]],
            "next": found[count - 1].account if len(found) > count else None,
        },
    )


async def _create_account(book: LedgerBook, request: Request) -> Answer:
    known = ("account", "tier", "credit_limit", "suspended", "metadata")
    fields = Fields(await read_body(request), known)
    name = fields.account()
    return Answer(201, _account_record(await book.create_account(name, **fields.settings())))


async def _account(book: LedgerBook, request: Request) -> Answer:
    name = request.path_params["account"]
    found = None if "\0" in name else await book.account(name)
    if found is None:
        raise NotFound(f"there is no account {name!r} in this ledger")
    return Answer(200, _account_record(found))


async def _set_account(book: LedgerBook, request: Request) -> Answer:
    name = request.path_params["account"]
    fields = Fields(await read_body(request), ("tier", "credit_limit", "suspended", "metadata"))
    if "\0" in name:
        raise NotFound(f"there is no account {name!r} in this ledger")
    return Answer(200, _account_record(await book.set_account(name, **fields.settings())))


async def _keys(book: LedgerBook, request: Request) -> Answer:
    name = request.query_params.get("account", "")
    if not name or "\0" in name:
        raise Refuse(400, "invalid_request_body", "name an account: ?account=acme", param="account")
    return Answer(200, {"keys": [_key_record(key) for key in await book.keys(name)]})


async def _issue_key(book: LedgerBook, request: Request) -> Answer:
    fields = Fields(await read_body(request), ("account", "label"))
    record = await book.issue_key(fields.account(), label=fields.text_or_none("label"))
    return Answer(201, {**_key_record(record), "key": record.key})


async def _revoke_key(book: LedgerBook, request: Request) -> Answer:
    # By its id alone: a key itself does not belong into a path, which is logged.
    key_id = request.path_params["key_id"]
    return Answer(200, _key_record(await book.revoke_key(key_id)))


def _booked(receipt: Receipt) -> Answer:
    record = {
        "request_id": receipt.request_id,
        "kind": receipt.kind,
        "reference": receipt.reference,
        "amount_nano": str(receipt.amount_nano),
        "amount": decimal_string(receipt.amount_nano),
        "currency": receipt.account.currency,
        "settled_at": receipt.settled_at,
        "repeated": receipt.repeated,
        "account": _account_record(receipt.account),
    }
    return Answer(200 if receipt.repeated else 201, record)


def _account_record(record: AccountRecord) -> dict[str, Any]:
    told: dict[str, Any] = {
        "account": record.account,
        "tier": record.tier,
        "pinned_tier": record.pinned_tier,
        "suspended": record.suspended,
        "currency": record.currency,
    }
    for name in ("balance", "held", "recharged", "credit_limit"):
        nano = getattr(record, f"{name}_nano")
        told[f"{name}_nano"] = str(nano)
        told[name] = decimal_string(nano)
    return {**told, "metadata": dict(record.metadata), "created_at": record.created_at}


def _key_record(record: KeyRecord) -> dict[str, Any]:
    return {
        "key_id": record.key_id,
        "account": record.account,
        "label": record.label,
        "created_at": record.created_at,
        "revoked_at": record.revoked_at,
    }
