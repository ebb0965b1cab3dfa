"""Settlements of calls, as steps for either database."""

from collections.abc import Sequence

from inf_middleware.ledgers.lots import spend
from inf_middleware.ledgers.rows import Rows, write
from inf_middleware.ledgers.steps import Ask, Steps


def settle_all(rows: Sequence[Rows]) -> Steps[None]:
    """Write the settlements of calls that hold nothing; one that is there already stays."""
    spending = yield from _new_charges_of_lots(rows)
    yield from write(rows)
    for account, currency, amount_nano in spending:
        yield from spend(account, currency, amount_nano)


def writing_nothing() -> Steps[None]:
    """Write without changing anything: whether the ledger can."""
    yield Ask("UPDATE meta SET schema_version = schema_version")


def _new_charges_of_lots(rows: Sequence[Rows]) -> Steps[list[tuple[str, str, int]]]:
    """Return what is newly charged to accounts that have grants which expire."""
    lots = yield Ask(_SOME_LOT)
    if not lots:
        return []
    charges: dict[str, tuple[str, str, int]] = {}
    for row in rows:
        if row.posting is None:
            continue
        request_id, debit, _, amount_nano, currency = row.posting
        account = debit.removeprefix("account:")
        has = yield Ask("SELECT 1 FROM lot WHERE account = ? AND left_nano > 0 LIMIT 1", (account,))
        if has and not (yield Ask("SELECT 1 FROM posting WHERE request_id = ?", (request_id,))):
            charges[request_id] = (account, currency, amount_nano)
    return list(charges.values())


# The common ledger has no grant that expires, and is asked only this.
_SOME_LOT = "SELECT 1 FROM lot WHERE left_nano > 0 LIMIT 1"
