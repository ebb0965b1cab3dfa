"""Which ledger a URI names."""

from inf_middleware.ledgers.sqlite import SqliteLedger


def ledger_of(uri: str) -> SqliteLedger:
    """Make the ledger of a URI; it opens nothing yet.

    Raises:
        ConfigError: It names none.
    """
    return SqliteLedger.from_uri(uri)
