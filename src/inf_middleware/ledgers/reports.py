"""What the ledger tells the operator."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.ledgers.connection import connect_to_read


class AccountUsage(NamedTuple):
    """What one account used: sums over its request records; `tier` is its latest."""

    account: str
    tier: str
    requests: int
    input_tokens: int
    output_tokens: int
    amount_nano: int
    currency: str
    unpriced_requests: int


def usage_by_account(path: Path) -> list[AccountUsage]:
    """Sum up the records by account and currency, dearest first.

    Raises:
        LedgerUnavailable: The file is not there, or is no ledger.
    """
    with contextlib.closing(connect_to_read(path)) as db:
        try:
            rows: Any = db.execute(
                "SELECT account,"
                " (SELECT tier FROM request latest WHERE latest.account = request.account"
                "  ORDER BY settled_at DESC, seq DESC LIMIT 1),"
                " count(*), sum(input_tokens), sum(output_tokens), sum(amount_nano), currency,"
                " sum(unpriced) FROM request WHERE kind = 'usage' GROUP BY account, currency"
                " ORDER BY sum(amount_nano) DESC, account"
            ).fetchall()
        except apsw.Error as error:
            raise LedgerUnavailable(f"{path} cannot be read: {error}") from error
    return [AccountUsage(*row) for row in rows]
