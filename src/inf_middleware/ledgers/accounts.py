"""Accounts and their keys, as steps for either database."""

from collections.abc import Mapping
from typing import Any

import msgspec

from inf_middleware.domain.books import AccountRecord, KeyRecord
from inf_middleware.domain.errors import AlreadyExists, ConfigError, NotFound
from inf_middleware.domain.money import decimal_string
from inf_middleware.domain.tiers import Tiers
from inf_middleware.ledgers.steps import Ask, Steps

# Look-ups of every process see a change by this number.
CHANGED = Ask("UPDATE meta SET accounts_version = accounts_version + 1")

_ACCOUNT = (
    "SELECT names.id, account.tier, coalesce(account.suspended, 0),"
    " coalesce(account.credit_limit_nano, 0), account.metadata, account.created_at,"
    " coalesce(balance.balance_nano, 0), coalesce(balance.held_nano, 0),"
    " coalesce(balance.recharged_nano, 0)"
    " FROM (SELECT id FROM account UNION SELECT account FROM balance) names"
    " LEFT JOIN account ON account.id = names.id"
    " LEFT JOIN balance ON balance.account = names.id AND balance.currency = ?"
)

# The settings of an account: columns of its row.
_SETTINGS = ("tier", "suspended", "credit_limit_nano", "metadata")


def account_of(account: str, currency: str, tiers: Tiers) -> Steps[AccountRecord | None]:
    """Return an account that was created, or that has had money; None for any other."""
    rows = yield Ask(f"{_ACCOUNT} WHERE names.id = ?", (currency, account))
    return _account(rows[0], currency, tiers) if rows else None


def accounts_by_name(
    currency: str, tiers: Tiers, after: str = "", count_max: int | None = None
) -> Steps[list[AccountRecord]]:
    """Return accounts by name, those after a name, as many as are wanted (None: all)."""
    limit = "" if count_max is None else f" LIMIT {count_max:d}"
    rows = yield Ask(f"{_ACCOUNT} WHERE names.id > ? ORDER BY names.id{limit}", (currency, after))
    return [_account(row, currency, tiers) for row in rows]


def create_account(account: str, now: str, settings: Mapping[str, Any]) -> Steps[None]:
    """Make an account.

    Raises:
        BookingRefused: It is there already.
    """
    if (yield Ask("SELECT 1 FROM account WHERE id = ?", (account,))):
        raise AlreadyExists(f"the account {account!r} exists already")
    yield from ensure_account(account, now)
    yield from _set(account, settings)


def set_account(account: str, now: str, settings: Mapping[str, Any]) -> Steps[None]:
    """Change an account's settings: columns of its row.

    Raises:
        BookingRefused: There is no such account.
    """
    yield from _must_exist(account, now)
    yield from _set(account, settings)


def issue_key(account: str, sha256: str, label: str | None, now: str) -> Steps[KeyRecord]:
    """Keep the hash of a new key.

    Raises:
        BookingRefused: There is no such account.
    """
    yield from _must_exist(account, now)
    key_id = sha256[:12]
    yield Ask(
        "INSERT INTO api_key (sha256, key_id, account, label, created_at) VALUES (?, ?, ?, ?, ?)",
        (sha256, key_id, account, label, now),
    )
    yield CHANGED
    return KeyRecord(key_id, account, label, now, None)


def keys(account: str | None) -> Steps[list[KeyRecord]]:
    """Return the keys of an account, or of all, oldest first."""
    where = "" if account is None else " WHERE account = ?"
    rows = yield Ask(
        "SELECT key_id, account, label, created_at, revoked_at FROM api_key"
        f"{where} ORDER BY account, created_at, key_id",
        () if account is None else (account,),
    )
    return [KeyRecord(*row) for row in rows]


def revoke_key(key_id: str, sha256: str, now: str) -> Steps[KeyRecord]:
    """End a key, told by its id or its hash; one that has ended stays so.

    Raises:
        BookingRefused: There is no such key.
    """
    rows = yield Ask("SELECT sha256 FROM api_key WHERE key_id = ? OR sha256 = ?", (key_id, sha256))
    if not rows:
        raise NotFound(f"there is no key {key_id[:12]!r} in this ledger")
    ended = yield Ask(
        "UPDATE api_key SET revoked_at = coalesce(revoked_at, ?) WHERE sha256 = ?"
        " RETURNING key_id, account, label, created_at, revoked_at",
        (now, rows[0][0]),
    )
    yield CHANGED
    return KeyRecord(*ended[0])


def ensure_account(account: str, now: str) -> Steps[None]:
    """Make an account where it is not there yet."""
    yield Ask(
        "INSERT INTO account (id, created_at) VALUES (?, ?) ON CONFLICT (id) DO NOTHING",
        (account, now),
    )


def level_of(pinned: str | None, recharged_nano: int, tiers: Tiers) -> str:
    """Return the name of a level: the one that is pinned, else by what was recharged."""
    if pinned is None:
        return tiers.for_recharge(decimal_string(recharged_nano)).name
    try:
        return tiers.named(pinned).name
    except ConfigError:  # pinned to a level of another table
        return pinned


def _must_exist(account: str, now: str) -> Steps[None]:
    known = yield Ask(
        "SELECT 1 FROM account WHERE id = ?"
        " UNION ALL SELECT 1 FROM balance WHERE account = ? LIMIT 1",
        (account, account),
    )
    if not known:
        raise NotFound(f"there is no account {account!r}; create it first, or recharge it")
    yield from ensure_account(account, now)  # one that has only been billed so far


def _set(account: str, settings: Mapping[str, Any]) -> Steps[None]:
    for name in _SETTINGS:
        if name in settings:
            yield Ask(
                f"UPDATE account SET {name} = ? WHERE id = ?",
                (settings[name], account),
            )
    yield CHANGED


def _account(row: Any, currency: str, tiers: Tiers) -> AccountRecord:
    name, tier, suspended, credit, metadata, created, balance, held, recharged = row
    return AccountRecord(
        account=name,
        tier=level_of(tier, recharged, tiers),
        pinned_tier=tier,
        suspended=bool(suspended),
        currency=currency,
        balance_nano=balance,
        held_nano=held,
        recharged_nano=recharged,
        credit_limit_nano=credit,
        metadata=msgspec.json.decode(metadata or "{}"),
        created_at=created,
    )
