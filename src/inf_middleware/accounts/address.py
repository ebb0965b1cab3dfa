"""Callers by their network address: where a request comes from, and accounts made of it."""

import logging
from functools import lru_cache

from starlette.requests import HTTPConnection

from inf_middleware.domain.tiers import Account, Tiers
from inf_middleware.wire.forwarded import TrustedProxies, network_of

_log = logging.getLogger("inf_middleware.accounts")

# Accounts kept ready; a miss only makes the record anew.
_ADDRESSES_MAX = 4096


class Networks:
    """Tells the network that a request comes from: an IPv4 address, an IPv6 /64, or "unix".

    Warns once where forwarded headers come that are not believed.
    """

    def __init__(self, trusted: TrustedProxies) -> None:
        self._trusted = trusted
        self._warned = False

    def __call__(self, connection: HTTPConnection) -> str:
        """Return the network of the client."""
        scope = connection.scope
        client = scope.get("client")
        caller = self._trusted.caller(client[0] if client else None, scope["headers"])
        if caller.unbelieved and not self._warned:
            self._warned = True
            _log.warning(
                "requests carry forwarded headers that are not believed, the first from %s:"
                " callers are told apart by the address that connects. Name your proxies in"
                ' trusted_proxies=["10.0.0.0/8"], or let the ASGI server resolve the headers',
                caller.host,
            )
        return network_of(caller.host)


class AddressAccounts:
    """Takes a caller's network for its account, on one level for all."""

    def __init__(self, tier: str, networks: Networks) -> None:
        self._tier = tier
        self._networks = networks
        self._account = lru_cache(_ADDRESSES_MAX)(
            lambda network: Account(f"ip:{network}", tier=tier)
        )

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        """Return the account of the caller's network; the key does not matter."""
        return self._account(self._networks(connection))

    def check_levels(self, tiers: Tiers) -> None:
        """See that the level exists.

        Raises:
            ConfigError: It does not.
        """
        tiers.named(self._tier)
