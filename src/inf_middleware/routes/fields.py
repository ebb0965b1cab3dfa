"""The bodies of admin requests: read up to a bound, each field checked by its name."""

import asyncio
import re
from collections.abc import Collection
from datetime import datetime
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request

from inf_middleware.call.refuse import Refuse
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.tiers import Account
from inf_middleware.ledgers.given import TEXT_CHARACTERS_MAX, AccountSettings

# Far more than any field here needs; the largest is an account's metadata.
BODY_BYTES_MAX = 64 * 1024

# A payment backend sends at once.
BODY_TIMEOUT_S = 10.0

# Nothing that people would read in another way: no exponent, no sign, no foreign digits.
_AMOUNT = re.compile(r"[0-9]{1,10}(\.[0-9]{1,9})?", re.ASCII)


async def read_body(request: Request) -> dict[str, Any]:
    """Return a request's body, which must be a JSON object.

    Raises:
        Refuse: It is none, is too long, or does not come.
    """
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                raw += piece
                if len(raw) > BODY_BYTES_MAX:
                    raise Refuse(
                        413,
                        "request_too_large",
                        f"The body has more than {BODY_BYTES_MAX:,} bytes.",
                    )
    except TimeoutError:
        raise Refuse(408, "request_timeout", "The body did not come in time.") from None
    except ClientDisconnect:
        raise Refuse(400, "invalid_request_body", "The body did not come whole.") from None
    try:
        body = msgspec.json.decode(bytes(raw))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _wrong(None, f"The body is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise _wrong(None, "The body must be a JSON object.")
    return body


class Fields:
    """The fields of a body; each method refuses what cannot hold, naming the field.

    Raises:
        Refuse: There is a field that is not `known`.
    """

    def __init__(self, body: dict[str, Any], known: Collection[str]) -> None:
        self._body = body
        for name in body:
            if name not in known:
                raise _wrong(name[:100], f"There is no field {name[:100]}; {', '.join(known)} are.")

    def account(self) -> str:
        """An account's id."""
        name = self.text("account")
        try:
            return Account(name).id
        except ConfigError as error:
            raise _wrong("account", f"account cannot hold: {error}.") from None

    def text(self, name: str) -> str:
        """A printable text, which is needed."""
        value = self._body.get(name)
        if value is None:
            raise _wrong(name, f"{name} is missing.")
        if not isinstance(value, str) or not value.strip() or not value.isprintable():
            raise _wrong(name, f"{name} must be a printable text.")
        if len(value) > TEXT_CHARACTERS_MAX:
            raise _wrong(name, f"{name} may have {TEXT_CHARACTERS_MAX} characters.")
        return value

    def text_or_none(self, name: str) -> str | None:
        """A printable text, or nothing."""
        return None if self._body.get(name) is None else self.text(name)

    def amount(self, name: str, *, may_be_zero: bool = False) -> str:
        """An amount of money as a decimal text: numbers of JSON are not exact."""
        value = self._body.get(name)
        if value is None:
            raise _wrong(name, f"{name} is missing.")
        if not isinstance(value, str) or not _AMOUNT.fullmatch(value):
            raise _wrong(
                name,
                f'{name} must be a text with a decimal in it of at most 9 places, such as "500.00";'
                " numbers of JSON are not exact.",
            )
        if not may_be_zero and not value.strip("0."):
            raise _wrong(name, f"{name} must be more than 0.")
        return value

    def moment_or_none(self, name: str) -> datetime | None:
        """A moment with its offset, or nothing."""
        value = self.text_or_none(name)
        if value is None:
            return None
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            raise _wrong(name, f"{name} must be a moment such as 2027-01-01T00:00:00Z.")
        return moment

    def settings(self) -> AccountSettings:
        """The settings of an account that are given; a `tier` of null unpins it."""
        given: AccountSettings = {}
        if "tier" in self._body:
            given["tier"] = self.text_or_none("tier")
        if "credit_limit" in self._body:
            given["credit_limit"] = self.amount("credit_limit", may_be_zero=True)
        if "suspended" in self._body:
            if not isinstance(self._body["suspended"], bool):
                raise _wrong("suspended", "suspended must be true or false.")
            given["suspended"] = self._body["suspended"]
        if "metadata" in self._body:
            if not isinstance(self._body["metadata"], dict):
                raise _wrong("metadata", 'metadata must be an object, such as {"customer": "C-1"}.')
            given["metadata"] = self._body["metadata"]
        return given


def _wrong(param: str | None, message: str) -> Refuse:
    return Refuse(400, "invalid_request_body", message, param=param)
