"""Accounts named by a gateway that stands before us and has checked the key already."""

import logging
from collections.abc import Iterable

from starlette.requests import HTTPConnection

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.tiers import Account, Tier, Tiers
from inf_middleware.wire.forwarded import TrustedProxies

_log = logging.getLogger("inf_middleware.accounts")

# Longer than any account's id or level's name; they go into records, keys of stores and logs.
_BYTES_MAX = 256


class HeaderAccounts:
    """Takes a header for the account, and another for its level, from trusted peers only.

    `trusted`: addresses and networks of the gateways, or "unix" for a unix socket; the peer that
    counts is the one that connects. `tier` is the level where the gateway names none.

    Raises:
        ConfigError: A name that is none, or nobody to trust.
    """

    cacheable = False  # all is in the request

    def __init__(
        self,
        header: str,
        *,
        trusted: Iterable[str],
        tier_header: str | None = None,
        tier: str | Tier | None = None,
    ) -> None:
        self._header = _header_name(header)
        self._tier_header = None if tier_header is None else _header_name(tier_header)
        self._trusted = TrustedProxies.of(trusted, "trusted")
        if not self._trusted.networks and not self._trusted.unix:
            raise ConfigError('trusted is empty; name the gateways: trusted=["10.0.0.7"]')
        self._tier = tier
        self._warned = False

    def check_levels(self, tiers: Tiers) -> None:
        """See that the level for those without one exists.

        Raises:
            ConfigError: It does not.
        """
        if isinstance(self._tier, str):
            tiers.named(self._tier)

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        """Return the account that the gateway names; the key does not matter."""
        scope = connection.scope
        names = [value for name, value in scope["headers"] if name == self._header]
        if not names:
            return None
        client = scope.get("client")
        peer = client[0] if client else None
        if not self._trusted.trusts(peer):
            if not self._warned:
                self._warned = True
                _log.warning(
                    "%s came from %s, which is not trusted, and is not believed; if that is your"
                    " gateway, name it in `trusted`. A server that resolves forwarded headers"
                    " itself hides it (uvicorn: --no-proxy-headers)",
                    self._header.decode(),
                    peer or "a unix socket",
                )
            return None
        account = _only_text(names)
        if account is None:
            return None
        if self._tier_header is not None:
            tiers = [value for name, value in scope["headers"] if name == self._tier_header]
            if tiers:
                tier = _only_text(tiers)
                return None if tier is None else Account(account, tier=tier)
        return Account(account, tier=self._tier)


def _header_name(name: object) -> bytes:
    if not isinstance(name, str) or not name.isascii() or not name.replace("-", "").isalnum():
        raise ConfigError(f'{name!r} is no name of a header; write one such as "x-account"')
    return name.lower().encode()


def _only_text(values: list[bytes]) -> str | None:
    """Return the one value; None where a client's own came along, or it is no printable text."""
    if len(values) != 1 or len(values[0]) > _BYTES_MAX:
        return None
    try:
        text = values[0].strip().decode()
    except UnicodeDecodeError:
        return None
    return text if text and text.isprintable() else None
