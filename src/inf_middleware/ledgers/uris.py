"""Which ledger a URI names."""

from urllib.parse import parse_qs, urlsplit

from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.uris import masked
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
    _check_ports(uri)
    return PostgresLedger(uri)


def _check_ports(uri: str) -> None:
    """See that each port can be one: the client itself says so only when it connects."""
    ports = filter(None, _ports(uri))
    if not all(port.isdecimal() and 1 <= int(port[:6]) <= 65_535 for port in ports):
        raise ConfigError(
            f"ledger is {masked(uri).partition('?')[0]!r}, whose port is no number from 1 to 65535;"
            ' write "postgresql://localhost:5432/inf", with %2F for / in a password'
        )


def _ports(uri: str) -> list[str]:
    try:
        parts = urlsplit(uri)
    except ValueError:  # brackets of an address that do not match
        return ["?"]
    hosts = parts.netloc.rpartition("@")[2].split(",")
    ports = [host.rpartition("]")[2].partition(":")[2] for host in hosts]
    return [*ports, *",".join(parse_qs(parts.query).get("port", [])).split(",")]
