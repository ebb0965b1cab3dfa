"""What changes in headers from one hop to the next: RFC 9110, sections 7.6.1 and 7.6.3."""

from collections.abc import Iterable, Sequence

Header = tuple[bytes, bytes]

# RFC 9110, section 7.6.1, and what RFC 2616, section 13.5.1, and old clients add to it. Trailers
# are not forwarded, so their announcement is not either.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)

# Written anew for the next hop; the server in front has answered `expect` when the body is read.
_OF_THE_REQUEST = frozenset({b"host", b"expect", b"via", b"x-forwarded-for"})

# Every ASGI server writes these two itself, and two of them are none.
_OF_THE_SERVER = frozenset({b"date", b"server"})

_WITHOUT_BODY = frozenset({204, 304})

# Where callers send their keys.
_KEYS = frozenset({b"authorization", b"x-api-key", b"api-key"})


def request_headers(
    headers: Iterable[Header],
    *,
    host: bytes,
    scheme: str,
    client: str | None,
    pseudonym: bytes,
    http_version: str = "1.1",
) -> list[Header]:
    """Return the headers of a request as the next hop is to see them, framing as it was declared.

    `host` is the next hop's; the caller's own goes into `x-forwarded-host` where nobody nearer to
    the caller has said it. `client` is the address that `x-forwarded-for` gets at its end.
    """
    # Some servers leave the spaces after a value, which belong to none and may not be sent on.
    given = [(name.lower(), value.strip(b" \t")) for name, value in headers]
    dropped = _OF_THE_REQUEST
    if any(name == b"transfer-encoding" for name, _ in given):  # it holds, RFC 9112 section 6.3
        dropped = dropped | {b"content-length"}
    kept = _without_hop(given, dropped)
    names = {name for name, _ in kept}
    hosts = [value for name, value in given if name == b"host"]
    if hosts and b"x-forwarded-host" not in names:
        kept.append((b"x-forwarded-host", hosts[0]))
    if b"x-forwarded-proto" not in names:
        kept.append((b"x-forwarded-proto", scheme.encode()))
    passed = [value for name, value in given if name == b"x-forwarded-for" and value]
    if client is not None:
        passed.append(client.encode())
    if passed:
        kept.append((b"x-forwarded-for", b", ".join(passed)))
    via = [value for name, value in given if name == b"via" and value]
    via.append(http_version.encode() + b" " + pseudonym)
    return [(b"host", host), *kept, (b"via", b", ".join(via))]


def response_headers(headers: Iterable[Header], status: int) -> list[Header]:
    """Return the headers of an answer as the client's hop is to see them."""
    given = [(name.lower(), value) for name, value in headers]
    dropped = _OF_THE_SERVER
    # A length that servers would hold against an empty body, or one that does not hold.
    if status in _WITHOUT_BODY or any(name == b"transfer-encoding" for name, _ in given):
        dropped = dropped | {b"content-length"}
    return _without_hop(given, dropped)


def passed_through(headers: Iterable[Header], pseudonym: bytes) -> bool:
    """Tell whether a request has come through this very proxy before."""
    return any(name.lower() == b"via" and pseudonym in value for name, value in headers)


def with_key(headers: Sequence[Header], key: str) -> list[Header]:
    """Return the headers with the caller's key replaced, in the header that it came in."""
    bearer = b"Bearer " + key.encode()
    changed = [
        (name, (bearer if name == b"authorization" else key.encode()) if name in _KEYS else value)
        for name, value in headers
    ]
    if not any(name in _KEYS for name, _ in headers):
        changed.append((b"authorization", bearer))
    return changed


def _without_hop(headers: Sequence[Header], dropped: frozenset[bytes]) -> list[Header]:
    of_this_hop = HOP_BY_HOP | dropped
    for name, value in headers:
        if name == b"connection":
            of_this_hop = of_this_hop | {one.strip().lower() for one in value.split(b",")}
    # An intermediary must not drop what frames the body, whatever Connection says.
    of_this_hop = of_this_hop - ({b"content-length"} - dropped)
    return [(name, value) for name, value in headers if name not in of_this_hop]
