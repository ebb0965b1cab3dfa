"""Accounts in a TOML file: one `[[account]]` table each, with the SHA-256 of their keys."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from starlette.requests import HTTPConnection

from inf_middleware.domain import tables
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.keys import DIGEST_PREFIX, configured_digest, digest_of
from inf_middleware.domain.tiers import Account, Tier, Tiers
from inf_middleware.files import TableFile

_KNOWN = ("id", "tier", "recharged", "keys", "suspended", "metadata")
_HASHING = 'make one with: printf %s "$KEY" | sha256sum'


class TomlAccounts:
    """Accounts of a TOML file, or of one table in it; `file` is what follows its changes.

    Raises:
        ConfigError: The file cannot be read, or an entry cannot hold; names file and entry.
    """

    cacheable = False  # it is in memory already

    def __init__(self, path: str | Path, *, section: str | None = None) -> None:
        self.file = TableFile(
            "accounts", path, Entries if section is None else _own, section=section
        )
        self.source = self.file.source

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        """Return the account of a key; None for no key or an unknown one."""
        return None if key is None else self.known_by_digest(digest_of(key))

    def known_by_digest(self, digest: bytes) -> Account | None:
        """Return the account of the key with this SHA-256."""
        return self.file.value.by_digest.get(digest)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TomlAccounts):
            return NotImplemented
        return self.source == other.source

    def __hash__(self) -> int:
        return hash(self.source)

    def __repr__(self) -> str:
        return f"TomlAccounts({self.source!r})"

    def check_levels(self, tiers: Tiers) -> None:
        """See that all levels exist.

        Raises:
            ConfigError: One does not; names file and entry.
        """
        self.file.value.check_levels(tiers)


class Entries:
    """What a table says: its accounts, by the SHA-256 of their keys.

    Raises:
        ConfigError: An entry cannot hold; names it.
    """

    def __init__(self, table: Mapping[str, Any], source: str) -> None:
        tables.refuse_unknown(table, {"account"}, source)
        self._where: dict[str, str] = {}  # account id → its entry, in words
        self.accounts: list[Account] = []
        self.by_digest: dict[bytes, Account] = {}
        for number, row in enumerate(tables.rows(table, "account", source), 1):
            self._add(f"{source}: account {number}", row)

    def check_levels(self, tiers: Tiers) -> None:
        """See that all levels exist.

        Raises:
            ConfigError: One does not; names the entry.
        """
        for account in self.accounts:
            try:
                tiers.of(account)
            except ConfigError as error:
                raise ConfigError(f"{self._where[account.id]}: {error}") from None

    def _add(self, where: str, row: dict[str, Any]) -> None:
        name = row.get("id")
        if name is None:
            raise ConfigError(f'{where} lacks id; write id = "acme"')
        where = f"{where} ({name})"
        tables.refuse_unknown(row, _KNOWN, where)
        account = _account_of(row, where)
        if account.id in self._where:
            raise ConfigError(f"{where} has the id of another; an account has all its keys in one")
        self._where[account.id] = where
        self.accounts.append(account)
        for digest in _digests_of(row.get("keys"), where):
            if digest in self.by_digest:
                owner = self._where[self.by_digest[digest].id]
                raise ConfigError(f"{where} has a key that {owner} has; a key has one account")
            self.by_digest[digest] = account


def _own(table: Mapping[str, Any], source: str) -> Entries:
    """Read the accounts of a section, which has options beside them."""
    return Entries({"account": table.get("account")}, source)


def _account_of(row: dict[str, Any], where: str) -> Account:
    fields = {name: row[name] for name in _KNOWN if name in row and name != "keys"}
    tier = fields.get("tier")
    if isinstance(tier, dict):
        fields["tier"] = Tier.from_row(tier, f"{where}: tier")
    elif tier is not None and not isinstance(tier, str):
        raise ConfigError(
            f"{where}: tier is {tier!r}; write a level's name, or a table [account.tier] of limits"
        )
    if not isinstance(fields.get("metadata", {}), dict):
        raise ConfigError(f'{where}: metadata is no table; write {{ customer = "C-17" }}')
    try:
        return Account(**fields)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None


def _digests_of(keys: object, where: str) -> list[bytes]:
    if not isinstance(keys, list):
        raise ConfigError(f'{where} lacks keys; write keys = ["sha256:…"], {_HASHING}')
    digests = []
    for number, key in enumerate(keys, 1):
        if not isinstance(key, str) or not key.startswith(DIGEST_PREFIX):
            # The key itself is not shown: it may be one in clear.
            raise ConfigError(
                f'{where}: key {number} is not "sha256:" and 64 hexadecimal digits; keys in clear'
                f" do not belong into a file, {_HASHING}"
            )
        digests.append(configured_digest(key, f"{where}: key {number}"))
    return digests
