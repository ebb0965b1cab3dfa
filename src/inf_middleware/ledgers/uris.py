"""Which ledger a URI names."""

from inf_middleware.domain.errors import ConfigError
from inf_middleware.ledgers.base import LedgerBase
from inf_middleware.ledgers.sqlite import SqliteLedger


def ledger_of(uri: str) -> LedgerBase:
    """Make the ledger of a URI; it opens nothing yet.

    Raises:
        ConfigError: It names none, or one whose extra is not installed.
    """
    if not uri.startswith(("postgresql://", "postgres://")):
        return SqliteLedger.from_uri(uri)
    try:
        from inf_middleware.ledgers.postgres import PostgresLedger  # noqa: PLC0415 - of an extra
    except ImportError as error:
        raise ConfigError(
            "a ledger in PostgreSQL needs asyncpg: pip install 'inf-middleware[postgres]'"
        ) from error
    return PostgresLedger(uri)
