"""Callers without accounts: each network address is one."""

import ipaddress
import logging
from functools import lru_cache

from starlette.requests import HTTPConnection

from inf_middleware.domain.tiers import Account

_log = logging.getLogger("inf_middleware.accounts")

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")

# Accounts kept ready; a miss only makes the record anew.
_ADDRESSES_MAX = 4096


class AddressAccounts:
    """Takes a caller's network address for its account, on one level for all.

    IPv6 counts by /64, which is what one subscriber is given. Forwarded headers are not believed:
    let the ASGI server resolve them (uvicorn: `--proxy-headers --forwarded-allow-ips`).
    """

    def __init__(self, tier: str) -> None:
        self._warned = False
        self._account = lru_cache(_ADDRESSES_MAX)(
            lambda host: Account(f"ip:{network_of(host)}", tier=tier)
        )

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        """Return the account of the caller's address; the key does not matter."""
        if not self._warned and any(name in connection.headers for name in _FORWARDED):
            self._warned = True
            _log.warning(
                "requests carry forwarded headers, which are not believed: callers are told apart"
                " by the address that connects. Let the ASGI server resolve them, or give"
                " accounts="
            )
        client = connection.client
        return self._account(client.host if client else "unknown")


def network_of(host: str) -> str:
    """Return what counts as one caller: an IPv4 address, an IPv6 /64, or the text itself."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), 64), strict=False))
