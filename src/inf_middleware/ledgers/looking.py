"""From a key to its account, as steps for either database."""

import msgspec

from inf_middleware.domain.money import decimal_string
from inf_middleware.domain.tiers import Account
from inf_middleware.ledgers.steps import Ask, Steps


def accounts_version() -> Steps[int]:
    """Return the number that grows with every change of accounts, keys and recharges."""
    rows = yield Ask("SELECT accounts_version FROM meta")
    return int(rows[0][0])


def account_of_key(sha256: str, currency: str) -> Steps[tuple[int, Account | None]]:
    """Return the account of a key that is in force, and the version it is of."""
    version = yield from accounts_version()
    rows = yield Ask(
        "SELECT account.id, account.tier, account.suspended, account.credit_limit_nano,"
        " account.metadata, coalesce(balance.recharged_nano, 0)"
        " FROM api_key JOIN account ON account.id = api_key.account"
        " LEFT JOIN balance ON balance.account = account.id AND balance.currency = ?"
        " WHERE api_key.sha256 = ? AND api_key.revoked_at IS NULL",
        (currency, sha256),
    )
    if not rows:
        return version, None
    name, tier, suspended, credit, metadata, recharged = rows[0]
    account = Account(
        name,
        tier=tier,
        recharged=decimal_string(recharged),
        credit_limit=decimal_string(credit),
        metadata=msgspec.json.decode(metadata),
        suspended=bool(suspended),
    )
    return version, account
