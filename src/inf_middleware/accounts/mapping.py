"""Accounts in a mapping from key to level name or account."""

from collections.abc import Mapping

from starlette.requests import HTTPConnection

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.keys import configured_digest, digest_of
from inf_middleware.domain.tiers import Account, Tiers


class MappingAccounts:
    """Looks keys up by their SHA-256, so that neither timing nor memory dumps tell a key.

    A value that is a level's name makes an account whose id is a short hash of the key. A key may
    be given as "sha256:<hex>".

    Raises:
        ConfigError: A key or value of the wrong kind, or a level that does not exist.
    """

    cacheable = False  # it is in memory already

    def __init__(self, accounts: Mapping[str, str | Account], tiers: Tiers) -> None:
        self._by_digest: dict[bytes, Account] = {}
        for key, value in accounts.items():
            digest = configured_digest(key, "accounts")
            account = _account_of(digest, value)
            if digest in self._by_digest:
                raise ConfigError("accounts has one key twice, in clear and as sha256")
            self._by_digest[digest] = account
        self.check_levels(tiers)  # one that does not exist is found now, not at a request

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        """Return the account of a key; None for no key or an unknown one."""
        return None if key is None else self.known_by_digest(digest_of(key))

    def known_by_digest(self, digest: bytes) -> Account | None:
        """Return the account of the key with this SHA-256."""
        return self._by_digest.get(digest)

    def check_levels(self, tiers: Tiers) -> None:
        """See that all levels exist.

        Raises:
            ConfigError: One does not.
        """
        for account in self._by_digest.values():
            tiers.of(account)


def _account_of(digest: bytes, value: object) -> Account:
    if isinstance(value, str):
        return Account(f"key-{digest.hex()[:12]}", tier=value)
    if isinstance(value, Account):
        return value
    raise ConfigError(
        f"accounts has a {type(value).__name__} for a key; give a level's name or an Account:"
        ' {"sk-demo": "free"}'
    )
