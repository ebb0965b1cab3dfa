"""`inf-middleware account` and `key`: who may use the server."""

from typing import Any

import click
import msgspec

from inf_middleware.cli.common import Chosen, command, in_book, money, print_json, read, record_of
from inf_middleware.cli.table import table
from inf_middleware.domain.books import AccountRecord, KeyRecord
from inf_middleware.domain.errors import BookingRefused, ConfigError
from inf_middleware.ledgers import accounts
from inf_middleware.ledgers.book import LedgerBook
from inf_middleware.ledgers.given import AccountSettings


@click.group()
def account() -> None:
    """Look after accounts: levels, credit limits, suspensions."""


@account.command()
@click.argument("name", metavar="ACCOUNT")
@click.option("--tier", metavar="LEVEL", help="Pin a level; else it follows from the recharges.")
@click.option("--credit-limit", metavar="AMOUNT", help="How far below 0 the balance may go.")
@click.option("--metadata", metavar="JSON", help="An object that goes into billing events.")
@command
def create(
    chosen: Chosen, name: str, tier: str | None, credit_limit: str | None, metadata: str | None
) -> None:
    """Make an account."""
    settings = _settings(tier, credit_limit, metadata)

    async def go(book: LedgerBook) -> AccountRecord:
        return await book.create_account(name, **settings)

    _show(chosen, in_book(chosen, go))


@account.command("set")
@click.argument("name", metavar="ACCOUNT")
@click.option("--tier", metavar="LEVEL", help='Pin a level; "" lets it follow the recharges.')
@click.option("--credit-limit", metavar="AMOUNT", help="How far below 0 the balance may go.")
@click.option("--metadata", metavar="JSON", help="An object that goes into billing events.")
@click.option("--suspended/--active", default=None, help="Suspend it, or let it go on.")
@command
def change(
    chosen: Chosen,
    name: str,
    tier: str | None,
    credit_limit: str | None,
    metadata: str | None,
    suspended: bool | None,
) -> None:
    """Change what is given of an account's settings."""
    settings = _settings(tier, credit_limit, metadata)
    if suspended is not None:
        settings["suspended"] = suspended

    async def go(book: LedgerBook) -> AccountRecord:
        return await book.set_account(name, **settings)

    _show(chosen, in_book(chosen, go))


@account.command()
@click.argument("name", metavar="ACCOUNT")
@click.option("--lift", is_flag=True, help="End the suspension.")
@command
def suspend(chosen: Chosen, name: str, lift: bool) -> None:
    """Refuse all requests of an account, or end that."""

    async def go(book: LedgerBook) -> AccountRecord:
        return await book.set_account(name, suspended=not lift)

    _show(chosen, in_book(chosen, go))


@account.command()
@click.argument("name", metavar="ACCOUNT")
@command
def show(chosen: Chosen, name: str) -> None:
    """Show one account."""
    found = read(chosen, lambda: accounts.account_of(name, chosen.prices.currency, chosen.tiers))
    if found is None:
        raise BookingRefused(f"there is no account {name!r} in this ledger")
    _show(chosen, found)


@account.command("list")
@command
def list_accounts(chosen: Chosen) -> None:
    """Show all accounts."""
    found = read(chosen, lambda: accounts.accounts_by_name(chosen.prices.currency, chosen.tiers))
    if chosen.as_json:
        print_json([record_of(record) for record in found])
    elif found:
        click.echo(_accounts_table(found))
    else:
        click.echo("There is no account yet.")


@click.group()
def key() -> None:
    """Look after the keys of accounts."""


@key.command()
@click.argument("account_name", metavar="ACCOUNT")
@click.option("--label", help="What the key is for.")
@command
def issue(chosen: Chosen, account_name: str, label: str | None) -> None:
    """Make a key and show it, this once."""

    async def go(book: LedgerBook) -> KeyRecord:
        return await book.issue_key(account_name, label=label)

    issued = in_book(chosen, go)
    if chosen.as_json:
        print_json(record_of(issued))
    else:
        click.echo(issued.key)
        click.echo("It is shown this once; the ledger keeps only its hash.", err=True)


@key.command("list")
@click.argument("account_name", metavar="[ACCOUNT]", required=False)
@command
def list_keys(chosen: Chosen, account_name: str | None) -> None:
    """Show keys by their ids."""
    found = read(chosen, lambda: accounts.keys(account_name))
    if chosen.as_json:
        print_json([_without_key(record) for record in found])
    elif found:
        rows = [
            (k.key_id, k.account, k.label or "", k.created_at, k.revoked_at or "") for k in found
        ]
        header = ("key", "account", "label", "created", "revoked")
        click.echo(table(header, rows, left=5, total=False))
    else:
        click.echo("There is no key yet.")


@key.command()
@click.argument("key_name", metavar="KEY_ID")
@command
def revoke(chosen: Chosen, key_name: str) -> None:
    """End a key, told by its id or itself: refused within a second."""

    async def go(book: LedgerBook) -> KeyRecord:
        return await book.revoke_key(key_name)

    ended = in_book(chosen, go)
    if chosen.as_json:
        print_json(_without_key(ended))
    else:
        click.echo(f"{ended.key_id} of {ended.account} is revoked since {ended.revoked_at}.")


def _settings(tier: str | None, credit_limit: str | None, metadata: str | None) -> AccountSettings:
    settings: AccountSettings = {}
    if tier is not None:
        settings["tier"] = tier or None
    if credit_limit is not None:
        settings["credit_limit"] = credit_limit
    if metadata is not None:
        try:
            settings["metadata"] = msgspec.json.decode(metadata, type=dict[str, Any])
        except msgspec.MsgspecError:
            raise ConfigError(f"--metadata is {metadata!r}; write a JSON object") from None
    return settings


def _without_key(record: KeyRecord) -> dict[str, Any]:
    told = record_of(record)
    del told["key"]
    return told


def _show(chosen: Chosen, record: AccountRecord) -> None:
    if chosen.as_json:
        print_json(record_of(record))
    else:
        click.echo(_accounts_table([record]))


def _accounts_table(records: list[AccountRecord]) -> str:
    rows = [
        (
            r.account,
            r.tier + (" (pinned)" if r.pinned_tier else ""),
            "suspended" if r.suspended else "active",
            money(r.balance_nano, r.currency),
            money(r.held_nano, r.currency),
            money(r.recharged_nano, r.currency),
            money(r.credit_limit_nano, r.currency),
        )
        for r in records
    ]
    header = ("account", "tier", "state", "balance", "held", "recharged", "credit limit")
    return table(header, rows, left=3, total=False)
