"""What an operator gives for a movement or an account: checked, and as the ledger keeps it."""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, TypedDict

import msgspec

from inf_middleware.domain.books import Operation
from inf_middleware.domain.errors import BookingRefused
from inf_middleware.domain.moments import written
from inf_middleware.domain.money import nano_of
from inf_middleware.domain.tiers import Account, Tiers

Amount = Decimal | str | int

# As long as a UUID with a provider's name in front, and more; references go into events.
TEXT_CHARACTERS_MAX = 256


class AccountSettings(TypedDict, total=False):
    """What an operator sets of an account.

    `tier`: a level that is pinned; None: it follows from the recharges. `credit_limit`: how far
    below 0 the balance may go.
    """

    tier: str | None
    credit_limit: Amount
    suspended: bool
    metadata: Mapping[str, Any]


def settings_row(account: str, settings: AccountSettings, tiers: Tiers) -> dict[str, Any]:
    """Return what is given of settings as columns of an account's row.

    Raises:
        ConfigError: One that cannot hold.
        BookingRefused: A level whose name is no text.
    """
    row: dict[str, Any] = {}
    if "tier" in settings:
        tier = settings["tier"]
        row["tier"] = None if tier is None else tiers.named(text_given(tier, "tier")).name
    if "suspended" in settings:
        row["suspended"] = int(settings["suspended"])
    checked = Account(
        account,
        credit_limit=settings.get("credit_limit", "0"),
        metadata=settings.get("metadata", {}),
    )
    if "credit_limit" in settings:
        row["credit_limit_nano"] = checked.credit_limit_nano
    if "metadata" in settings:
        row["metadata"] = msgspec.json.encode(dict(checked.metadata)).decode()
    return row


def nano_given(amount: Amount, operation: Operation) -> int:
    """Return an amount of money that is to be moved.

    Raises:
        ConfigError: Not an exact amount of money.
        BookingRefused: It is 0.
    """
    nano = nano_of(amount, f"the amount to {operation}")
    if nano == 0:
        raise BookingRefused(f"the amount to {operation} is 0; nothing was booked")
    return nano


def text_given(value: str, what: str) -> str:
    """Return a text that goes into records.

    Raises:
        BookingRefused: It is none that can be printed, or too long.
    """
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise BookingRefused(f"{what} is {value!r}; it must be a printable text")
    if len(value) > TEXT_CHARACTERS_MAX:
        raise BookingRefused(
            f"{what} has {len(value):,} characters; it may have {TEXT_CHARACTERS_MAX}"
        )
    return value


def future_given(moment: datetime, now_ns: int) -> str:
    """Return a moment in the future as records write it.

    Raises:
        BookingRefused: It is not in the future, not aware, or out of range.
    """
    if moment.tzinfo is None:
        raise BookingRefused(f"expires is {moment}; give an aware moment, such as one in UTC")
    if moment.timestamp() * 1e9 <= now_ns:
        raise BookingRefused(f"expires is {moment}; it must be in the future")
    try:
        return written(moment)
    except ValueError:
        raise BookingRefused(f"expires is {moment}; it must be before the year 10000") from None
