"""`GET /account`: an account's level, limits, balance and usage, for the holder of its key."""

import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from inf_middleware.call.refuse import Refuse
from inf_middleware.call.who import caller_of
from inf_middleware.routes import page
from inf_middleware.routes.gather import gather
from inf_middleware.routes.house import House
from inf_middleware.routes.record import record_of
from inf_middleware.routes.refusals import Header, refused, request_id
from inf_middleware.routes.usage import Usages
from inf_middleware.routes.words import LANGUAGES, WORDS
from inf_middleware.wire.basic import with_bearer
from inf_middleware.wire.negotiation import best_language, prefers_html

# What is shown belongs to who has the key, and to this moment.
_PRIVATE: list[Header] = [
    (b"cache-control", b"no-store"),
    (b"vary", b"accept, accept-language, authorization, x-api-key, api-key"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

# A browser asks for the key by itself, and keeps it until it is closed: no script, no cookie.
_ASKS_BROWSER: Header = (b"www-authenticate", b'Basic realm="API key", charset="UTF-8"')


class AccountPage:
    """Answers `GET /account`.

    Raises:
        ConfigError: An option or setting cannot hold.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._house = House("account_routes", options)
        self._usages = Usages()

    async def get(self, request: Request) -> Response:
        """Answer one request."""
        scope = {**request.scope, "headers": with_bearer(request.scope["headers"])}
        around = await self._house.of(scope)
        html = prefers_html(request.headers.get("accept", ""))
        language = best_language(request.headers.get("accept-language", ""), LANGUAGES)
        named = request_id(around.parts)
        try:
            caller = await caller_of(scope, around.parts)
        except Refuse as refuse:
            if not html:
                return refused(refuse, around.parts, named, _PRIVATE)
            return _page(page.refusal(refuse, WORDS[language]), refuse.status, named, refuse)
        shown = await gather(caller, around, self._usages)
        if html:
            # Some milliseconds of writing, for which no other request shall wait.
            written = await asyncio.to_thread(page.account, shown, WORDS[language])
            return _page(written, 200, named)
        body = msgspec.json.encode(record_of(shown))
        return _response(200, body, b"application/json", named, [])


def _page(text: str, status: int, named: bytes, refuse: Refuse | None = None) -> Response:
    headers = [(b"content-security-policy", page.POLICY.encode())]
    if refuse is not None:
        headers += [one for one in refuse.headers if one[0] != b"www-authenticate"]
        if status == 401:
            headers.append(_ASKS_BROWSER)
    return _response(status, text.encode(), b"text/html; charset=utf-8", named, headers)


def _response(
    status: int, body: bytes, kind: bytes, named: bytes, headers: list[Header]
) -> Response:
    response = Response(body, status)
    response.raw_headers = [
        (b"content-type", kind),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", named),
        (b"request-id", named),
        *_PRIVATE,
        *headers,
    ]
    return response
