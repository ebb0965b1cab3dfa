"""The ledger in an operator's hands: accounts, keys, and movements of money."""

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self, Unpack

from inf_middleware.domain.books import AccountRecord, KeyRecord, Operation, Receipt
from inf_middleware.domain.ids import uuid7
from inf_middleware.domain.moments import rfc3339
from inf_middleware.domain.tiers import Account, Tiers
from inf_middleware.ledgers import accounts, movements
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.given import (
    AccountSettings,
    Amount,
    future_given,
    nano_given,
    settings_row,
    text_given,
)
from inf_middleware.ledgers.lots import expire
from inf_middleware.ledgers.movements import Movement
from inf_middleware.ledgers.steps import Ask, Steps
from inf_middleware.ledgers.uris import ledger_of

# 256 bits: nobody guesses a key.
_KEY_BYTES = 32


async def open_ledger(
    uri: str = "sqlite:///inf-ledger.db",
    *,
    tiers: Tiers | None = None,
    currency: str = "CNY",
    deployment: str = "default",
) -> "LedgerBook":
    """Open a ledger to keep its accounts; made, or brought to this version, where it is not yet.

    `tiers` are the levels that recharges lead to (those that ship by default), `currency` that of
    all amounts, `deployment` the source of the events.

    Raises:
        ConfigError: The URI names no ledger.
        LedgerUnavailable: It cannot be opened.
    """
    book = LedgerBook(ledger_of(uri), tiers=tiers, currency=currency, deployment=deployment)
    await book.ledger.read(_nothing)
    return book


class LedgerBook:
    """Accounts, keys and movements of money of one ledger, as `open_ledger` returns it.

    Amounts are decimal strings ("500.00"), ints or Decimals; floats are refused. Each movement is
    one transaction and one event. `now_ns` is the wall clock.
    """

    def __init__(
        self,
        ledger: LedgerBase,
        *,
        tiers: Tiers | None = None,
        currency: str = "CNY",
        deployment: str = "default",
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.ledger = ledger
        self.tiers = tiers or Tiers.default()
        self.currency = currency
        self._source = f"urn:inf-middleware:{deployment}"
        self._now_ns = now_ns

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close."""
        await self.ledger.aclose()

    async def recharge(
        self, account: str, amount: Amount, *, reference: str, note: str | None = None
    ) -> Receipt:
        """Book money that has come in: it counts towards the level, at once, and is there to spend.

        The same reference again changes nothing. The account is made where it is not there yet.

        Raises:
            ConfigError: Not an exact amount of money.
            BookingRefused: The reference stands for another recharge.
        """
        return await self._book("recharge", account, amount, reference, note)

    async def grant(
        self,
        account: str,
        amount: Amount,
        *,
        reference: str | None = None,
        note: str | None = None,
        expires: datetime | None = None,
    ) -> Receipt:
        """Give balance without money: it does not count towards the level.

        What is left of it at the aware moment `expires` is taken back; until then it is spent
        before all else.

        Raises:
            ConfigError: Not an exact amount of money.
            BookingRefused: The reference stands for another grant, or it expires in the past.
        """
        return await self._book("grant", account, amount, reference, note, expires)

    async def withdraw(
        self,
        account: str,
        amount: Amount,
        *,
        reference: str | None = None,
        note: str | None = None,
    ) -> Receipt:
        """Book money that goes back to the customer; the level stays.

        Raises:
            ConfigError: Not an exact amount of money.
            BookingRefused: More than the account has, less what running calls hold.
        """
        return await self._book("withdraw", account, amount, reference, note)

    async def credit(
        self,
        request_id: str,
        amount: Amount | None = None,
        *,
        reference: str | None = None,
        note: str | None = None,
    ) -> Receipt:
        """Correct a bill: give back `amount` of what a request cost, or all that is left of it.

        Raises:
            ConfigError: Not an exact amount of money.
            BookingRefused: There is no such request, or it cost less.
        """
        return await self._correct("credit", request_id, amount, reference, note)

    async def reverse(self, recharge: str, *, note: str | None = None) -> Receipt:
        """Undo a mistyped recharge, told by its id or reference, with the level it led to; once.

        Raises:
            BookingRefused: There is no such recharge.
        """
        return await self._correct("reverse", recharge, None, None, note)

    async def create_account(
        self, account: str, **settings: Unpack[AccountSettings]
    ) -> AccountRecord:
        """Make an account.

        Raises:
            ConfigError: A setting that cannot hold.
            BookingRefused: It is there already.
        """
        return await self._set(accounts.create_account, account, settings)

    async def set_account(self, account: str, **settings: Unpack[AccountSettings]) -> AccountRecord:
        """Change what is given of an account's settings.

        Raises:
            ConfigError: A setting that cannot hold.
            BookingRefused: There is no such account.
        """
        return await self._set(accounts.set_account, account, settings)

    async def account(self, account: str) -> AccountRecord | None:
        """Return an account, None where there is none."""
        return await self.ledger.read(
            lambda: accounts.account_of(account, self.currency, self.tiers)
        )

    async def accounts(
        self, *, after: str = "", count_max: int | None = None
    ) -> list[AccountRecord]:
        """Return accounts by name: those after a name, `count_max` at most (None: all)."""
        return await self.ledger.read(
            lambda: accounts.accounts_by_name(self.currency, self.tiers, after, count_max)
        )

    async def issue_key(self, account: str, *, label: str | None = None) -> KeyRecord:
        """Make a key; the record has it in clear, this once: only its hash is kept.

        Raises:
            BookingRefused: There is no such account.
        """
        key = f"sk-{secrets.token_urlsafe(_KEY_BYTES)}"
        digest = hashlib.sha256(key.encode()).hexdigest()
        label = text_given(label, "label") if label is not None else None
        record = await self.ledger.transact(
            lambda: accounts.issue_key(account, digest, label, self._now())
        )
        return KeyRecord(record.key_id, record.account, record.label, record.created_at, None, key)

    async def keys(self, account: str | None = None) -> list[KeyRecord]:
        """Return the keys of an account, or of all."""
        return await self.ledger.read(lambda: accounts.keys(account))

    async def revoke_key(self, key: str) -> KeyRecord:
        """End a key, told by its id or itself; every process refuses it within a second.

        Raises:
            BookingRefused: There is no such key.
        """
        digest = hashlib.sha256(key.encode()).hexdigest()
        return await self.ledger.transact(lambda: accounts.revoke_key(key, digest, self._now()))

    async def expire_grants(self) -> int:
        """Take back what is left of grants whose time is over; return how many."""
        now_ns = self._now_ns()
        return await self.ledger.transact(lambda: expire(now_ns, rfc3339(now_ns)))

    async def _book(
        self,
        operation: Literal["recharge", "grant", "withdraw"],
        account: str,
        amount: Amount,
        reference: str | None,
        note: str | None,
        expires: datetime | None = None,
    ) -> Receipt:
        Account(account)  # or it says what is wrong with the name
        nano = nano_given(amount, operation)
        movement = self._movement(operation, account, nano, reference, note, expires)
        return await self.ledger.transact(lambda: movements.book(movement))

    async def _correct(
        self,
        operation: Literal["credit", "reverse"],
        corrected: str,
        amount: Amount | None,
        reference: str | None,
        note: str | None,
    ) -> Receipt:
        nano = None if amount is None else nano_given(amount, operation)
        movement = self._movement(operation, "", nano or 0, reference, note)
        return await self.ledger.transact(lambda: movements.correct(movement, corrected, nano))

    def _movement(
        self,
        operation: Operation,
        account: str,
        amount_nano: int,
        reference: str | None,
        note: str | None,
        expires: datetime | None = None,
    ) -> Movement:
        now_ns = self._now_ns()
        return Movement(
            operation,
            account,
            amount_nano,
            self.currency,
            uuid7(now_ns),
            rfc3339(now_ns),
            now_ns,
            self._source,
            self.tiers,
            reference=None if reference is None else text_given(reference, "reference"),
            note=None if note is None else text_given(note, "note"),
            expires_at=None if expires is None else future_given(expires, now_ns),
        )

    async def _set(
        self,
        change: Callable[[str, str, Mapping[str, Any]], Steps[None]],
        account: str,
        settings: AccountSettings,
    ) -> AccountRecord:
        row = settings_row(account, settings, self.tiers)
        now = self._now()

        def work() -> Steps[AccountRecord]:
            yield from change(account, now, row)
            record = yield from accounts.account_of(account, self.currency, self.tiers)
            assert record is not None
            return record

        return await self.ledger.transact(work)

    def _now(self) -> str:
        return rfc3339(self._now_ns())


def _nothing() -> Steps[None]:
    yield Ask("SELECT 1")
