"""Accounts kept in a ledger: their keys, levels and recharges."""

import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable

from starlette.requests import HTTPConnection

from inf_middleware.domain.errors import AccountsUnavailable, LedgerUnavailable
from inf_middleware.domain.tiers import Account
from inf_middleware.ports import AccountBook

_log = logging.getLogger("inf_middleware.accounts")

# How often the ledger is asked whether anything has changed: half of the promised second.
CHECK_S = 0.5

# Accounts kept ready; a miss only reads one anew.
ACCOUNTS_MAX = 4096

# With the ledger away, what was known stays true this long; then nobody is let in on old facts.
STALE_MAX_S = 60.0


class _Kept:
    """An account as of a version of the ledger, and when it was last known to be so."""

    __slots__ = ("account", "confirmed_at", "version")

    def __init__(self, version: int, account: Account, confirmed_at: float) -> None:
        self.version = version
        self.account = account
        self.confirmed_at = confirmed_at


class LedgerAccounts:
    """Looks keys up in a ledger, by their SHA-256.

    What was read is kept until the ledger says that something has changed, which it is asked every
    `CHECK_S`; so every process sees a change within a second. `clock` is in seconds.
    """

    cacheable = False  # it remembers by itself, and knows when that is over

    def __init__(
        self, book: AccountBook, currency: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._book = book
        self._currency = currency
        self._clock = clock
        self._version = -1
        self._asked_at = self._known_at = float("-inf")
        self._failure: str | None = None  # of the last question
        self._accounts: OrderedDict[str, _Kept] = OrderedDict()

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        """Return the account of a key; None for no key, an unknown or a revoked one.

        Raises:
            AccountsUnavailable: The ledger cannot be asked, and what is known is too old.
        """
        if key is None:
            return None
        now = self._clock()
        if now - self._asked_at >= CHECK_S:
            self._asked_at = now  # others go on with what is known meanwhile
            await self._ask_version(now)
        digest = hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()
        kept = self._accounts.get(digest)
        if kept is not None and kept.version == self._version:
            kept.confirmed_at = max(kept.confirmed_at, self._known_at)
            if now - kept.confirmed_at <= STALE_MAX_S:
                self._accounts.move_to_end(digest)
                return kept.account
        if self._failure is not None and now - self._known_at > STALE_MAX_S:
            raise AccountsUnavailable(f"accounts cannot be read: {self._failure}")
        # After a quiet time what is known is old, too, and another request may be asking just now.
        return await self._read(digest, kept, now)

    async def _ask_version(self, now: float) -> None:
        try:
            version = await self._book.accounts_version()
        except LedgerUnavailable as error:
            self._failure = str(error)
            _log.warning("accounts cannot be checked for changes: %s", error)
            return
        self._failure = None
        self._known_at = now
        self._version = max(self._version, version)

    async def _read(self, digest: str, kept: "_Kept | None", now: float) -> Account | None:
        try:
            version, account = await self._book.account_of_key(digest, self._currency)
        except LedgerUnavailable as error:
            _log.warning("an account cannot be read: %s", error)
            if kept is not None and now - kept.confirmed_at <= STALE_MAX_S:
                return kept.account  # something has changed since, of this account or another
            raise AccountsUnavailable(f"the account cannot be read: {error}") from error
        self._version = max(self._version, version)
        if account is None:
            self._accounts.pop(digest, None)
            return None
        self._accounts[digest] = _Kept(version, account, now)
        self._accounts.move_to_end(digest)
        if len(self._accounts) > ACCOUNTS_MAX:
            self._accounts.popitem(last=False)
        return account
