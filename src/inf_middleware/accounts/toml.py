"""Accounts in a TOML file: one `[[account]]` table each, with the SHA-256 of their keys."""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import HTTPConnection

from inf_middleware.domain import tables
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.keys import DIGEST_PREFIX, configured_digest, digest_of
from inf_middleware.domain.tiers import Account, Tier, Tiers

_log = logging.getLogger("inf_middleware.accounts")

# The file is looked at no more often than this, whatever `accounts_ttl_s` says.
LOOK_INTERVAL_MIN_S = 1.0

_KNOWN = ("id", "tier", "recharged", "keys", "suspended", "metadata")
_HASHING = 'make one with: printf %s "$KEY" | sha256sum'


class TomlAccounts:
    """Accounts of a TOML file, read when it is given and, once followed, again when it changes.

    Raises:
        ConfigError: The file cannot be read, or an entry cannot hold; names file and entry.
    """

    cacheable = False  # it is in memory already

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.source = str(path)
        self._clock = clock
        self._stamp = _stamp_of(self.source)  # before it is read: a change meanwhile is seen later
        self._entries = _Entries(self.source)
        self._tiers: Tiers | None = None
        self._every_s = self._look_at = 0.0
        self._looking: asyncio.Task[None] | None = None

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        """Return the account of a key; None for no key or an unknown one."""
        if self._tiers is not None and self._clock() >= self._look_at:
            self._look(self._tiers)  # this request does not wait for it
        return None if key is None else self._entries.by_digest.get(digest_of(key))

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
        self._entries.check_levels(tiers)

    def follow(self, tiers: Tiers, every_s: float) -> None:
        """Look from now on whether the file has changed, as requests come."""
        self._tiers = tiers
        self._every_s = max(every_s, LOOK_INTERVAL_MIN_S)
        self._look_at = self._clock() + self._every_s

    def _look(self, tiers: Tiers) -> None:
        if self._looking is None or self._looking.done():
            self._look_at = self._clock() + self._every_s
            self._looking = asyncio.get_running_loop().create_task(self._read_anew(tiers))

    async def _read_anew(self, tiers: Tiers) -> None:
        stamp = await asyncio.to_thread(_stamp_of, self.source)
        if stamp == self._stamp:
            return
        self._stamp = stamp  # noted first: a mistake in the file is told once
        try:
            entries = await asyncio.to_thread(_Entries, self.source)
            entries.check_levels(tiers)
        except Exception as error:  # whatever is wrong with the file, what was right goes on
            _log.error("the accounts stay as they were: %s", error)
            return
        self._entries = entries
        _log.info("%s was read anew: %d accounts", self.source, len(entries.accounts))


class _Entries:
    """What a file says: its accounts, by the SHA-256 of their keys."""

    def __init__(self, source: str) -> None:
        self._where: dict[str, str] = {}  # account id → its entry, in words
        self.accounts: list[Account] = []
        self.by_digest: dict[bytes, Account] = {}
        for number, row in enumerate(tables.rows(_table_of(source), "account", source), 1):
            self._add(f"{source}: account {number}", row)

    def check_levels(self, tiers: Tiers) -> None:
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


def _stamp_of(source: str) -> tuple[int, int, int] | None:
    try:
        status = Path(source).stat()
    except OSError:  # told when it is read
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _table_of(source: str) -> dict[str, object]:
    try:
        text = Path(source).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"accounts: {source} cannot be read: {error}") from error
    table = tables.parse(text, source)
    tables.refuse_unknown(table, {"account"}, source)
    return table


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
