"""All that an account may know of itself, gathered for its page."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Literal, TypeAlias

from inf_middleware.around import Around
from inf_middleware.call.record import Caller
from inf_middleware.domain.books import AccountRecord
from inf_middleware.domain.errors import LedgerMissing, LedgerUnavailable, LimitsUnavailable
from inf_middleware.domain.limits import GroupReading
from inf_middleware.domain.money import nano_of
from inf_middleware.domain.rates import MICROSECONDS, LimitGroup
from inf_middleware.domain.tiers import Tier
from inf_middleware.ledgers.accounts import account_of
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ports import LimitStore, ReadableStore
from inf_middleware.routes.usage import Usage, Usages, Whose

_log = logging.getLogger("inf_middleware.routes")

Kind: TypeAlias = Literal["concurrency", "requests", "tokens"]

# Whether there is something to show: "here"; "none", which the operator does not keep; "away".
State: TypeAlias = Literal["here", "none", "away"]


@dataclass(frozen=True, slots=True)
class LimitShown:
    """One limit; `used` and `reset_s` are None where nobody can tell just now.

    `model` is the pattern of the models that it is for; None: all that have none of their own.
    `window_s` is 0 for concurrency, which has no reset.
    """

    model: str | None
    kind: Kind
    limit: int
    window_s: float
    used: int | None
    reset_s: float | None

    @property
    def remaining(self) -> int | None:
        """What is left of it."""
        return None if self.used is None else max(self.limit - self.used, 0)


@dataclass(frozen=True, slots=True)
class LevelShown:
    """A level, and the next; `pinned` where recharges do not change it."""

    tier: Tier
    pinned: bool
    recharged_nano: int
    next: Tier | None

    @property
    def missing_nano(self) -> int:
        """What is to be recharged for the next level."""
        return self.next.recharged_from_nano - self.recharged_nano if self.next else 0


@dataclass(frozen=True, slots=True)
class BalanceShown:
    """What an account has, in nano units; below 0 it owes. Running calls hold part of it."""

    balance_nano: int
    held_nano: int
    credit_limit_nano: int

    @property
    def available_nano(self) -> int:
        """What can still be spent."""
        return self.balance_nano - self.held_nano + self.credit_limit_nano


@dataclass(frozen=True, slots=True)
class AccountShown:
    """An account as its holder sees it. `mode` and `currency` are of the ledger."""

    account: str
    key_id: str | None
    level: LevelShown
    limits: Sequence[LimitShown]
    limits_state: State
    ledger_state: State
    mode: str
    currency: str
    balance: BalanceShown | None
    usage: Usage | None
    zone: tzinfo
    at: datetime


async def gather(caller: Caller, around: Around, usages: Usages) -> AccountShown:
    """Gather what is known of a caller's account; what is away is left out, and said."""
    account, tier, key_id = caller
    parts, rules = around.parts, around.rules
    limits, limits_state = await _limits(around.store, account.id, tier)
    currency = parts.prices.currency
    ledger = around.ledger if isinstance(around.ledger, LedgerBase) else None
    balance = usage = None
    ledger_state: State = "none"
    if ledger is not None:
        try:
            await usages.is_there(ledger)
            record = await ledger.read(lambda: account_of(account.id, currency, parts.tiers))
            usage = await usages.of(Whose(ledger, account.id, currency, rules.zone))
            balance = _balance(record, account.credit_limit_nano)
            ledger_state = "here"
        except LedgerMissing:
            pass  # nothing has been billed yet
        except LedgerUnavailable as error:
            _log.warning("an account's usage cannot be shown: %s", error)
            ledger_state = "away"
    recharged = nano_of(account.recharged, "recharged")
    pinned = account.tier is not None
    following = None if pinned else parts.tiers.after(tier, account.recharged)
    return AccountShown(
        account=account.id,
        key_id=key_id,
        level=LevelShown(tier, pinned, recharged, following),
        limits=limits,
        limits_state=limits_state,
        ledger_state=ledger_state,
        mode=rules.mode,
        currency=currency,
        balance=balance,
        usage=usage,
        zone=rules.zone,
        at=datetime.fromtimestamp(parts.now_ns() / 1e9, UTC),
    )


async def _limits(
    store: LimitStore | None, account_id: str, tier: Tier
) -> tuple[list[LimitShown], State]:
    if store is None:
        return [], "none"
    readings: Sequence[GroupReading | None] = [None] * len(tier.groups)
    state: State = "away"
    if isinstance(store, ReadableStore):
        try:
            readings = await store.read(account_id, tier.groups)
            state = "here"
        except LimitsUnavailable as error:
            _log.warning("an account's limits cannot be shown: %s", error)
    shown = []
    for group, reading in zip(tier.groups, readings, strict=True):
        shown += _of_group(group, reading)
    return shown, state


def _of_group(group: LimitGroup, reading: GroupReading | None) -> list[LimitShown]:
    model = group.scope or None
    shown = []
    if group.concurrency is not None:
        running = None if reading is None else reading.running
        shown.append(LimitShown(model, "concurrency", group.concurrency, 0.0, running, None))
    for number, rate in enumerate(group.rates):
        window = None if reading is None else reading.rates[number]
        shown.append(
            LimitShown(
                model,
                rate.metric,
                rate.limit,
                rate.window_s,
                None if window is None else window.total,
                None if window is None else window.reset_us / MICROSECONDS,
            )
        )
    return shown


def _balance(record: AccountRecord | None, credit_limit_nano: int) -> BalanceShown:
    if record is None:
        return BalanceShown(0, 0, credit_limit_nano)
    return BalanceShown(record.balance_nano, record.held_nano, credit_limit_nano)
