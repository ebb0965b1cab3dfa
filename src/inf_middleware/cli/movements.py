"""`inf-middleware recharge`, `grant`, `credit`, `withdraw`, `reverse`: money that moves."""

from datetime import datetime

import click

from inf_middleware.cli.common import (
    Chosen,
    command,
    in_book,
    moment_of,
    money,
    print_json,
    record_of,
)
from inf_middleware.cli.table import printable
from inf_middleware.domain.books import Receipt
from inf_middleware.ledgers.book import LedgerBook

_note = click.option("--note", help="Why; it goes into the event.")
_reference = click.option("--reference", help="Books it once, however often it is run.")


@click.command()
@click.argument("account", metavar="ACCOUNT")
@click.argument("amount", metavar="AMOUNT")
@click.option("--reference", required=True, help="The payment's name; it is booked once.")
@_note
@command
def recharge(chosen: Chosen, account: str, amount: str, reference: str, note: str | None) -> None:
    """Book money that has come in; the level follows at once."""

    async def go(book: LedgerBook) -> Receipt:
        return await book.recharge(account, amount, reference=reference, note=note)

    _show(chosen, in_book(chosen, go))


@click.command()
@click.argument("account", metavar="ACCOUNT")
@click.argument("amount", metavar="AMOUNT")
@click.option("--expires", metavar="WHEN", help="A day or a moment; what is left then is gone.")
@_reference
@_note
@command
def grant(
    chosen: Chosen,
    account: str,
    amount: str,
    expires: str | None,
    reference: str | None,
    note: str | None,
) -> None:
    """Give balance without money; it does not count towards the level."""
    moment = moment_of(expires, chosen.zone, "--expires")
    until = None if moment is None else datetime.fromisoformat(moment)

    async def go(book: LedgerBook) -> Receipt:
        return await book.grant(account, amount, reference=reference, note=note, expires=until)

    _show(chosen, in_book(chosen, go))


@click.command()
@click.argument("request")
@click.argument("amount", metavar="[AMOUNT]", required=False)
@_reference
@_note
@command
def credit(
    chosen: Chosen, request: str, amount: str | None, reference: str | None, note: str | None
) -> None:
    """Correct a bill: give back AMOUNT of what REQUEST cost, or all of it."""

    async def go(book: LedgerBook) -> Receipt:
        return await book.credit(request, amount, reference=reference, note=note)

    _show(chosen, in_book(chosen, go))


@click.command()
@click.argument("account", metavar="ACCOUNT")
@click.argument("amount", metavar="AMOUNT")
@_reference
@_note
@command
def withdraw(
    chosen: Chosen, account: str, amount: str, reference: str | None, note: str | None
) -> None:
    """Book money that goes back to the customer; the level stays."""

    async def go(book: LedgerBook) -> Receipt:
        return await book.withdraw(account, amount, reference=reference, note=note)

    _show(chosen, in_book(chosen, go))


@click.command()
@click.argument("recharged", metavar="RECHARGE")
@_note
@command
def reverse(chosen: Chosen, recharged: str, note: str | None) -> None:
    """Undo a mistyped recharge, told by its id or reference, with the level it led to."""

    async def go(book: LedgerBook) -> Receipt:
        return await book.reverse(recharged, note=note)

    _show(chosen, in_book(chosen, go))


# What an operation is called once it is done.
_NOUNS = {"withdraw": "withdrawal", "reverse": "reversal"}


def _show(chosen: Chosen, receipt: Receipt) -> None:
    if chosen.as_json:
        print_json(record_of(receipt))
        return
    account = receipt.account
    told = "was booked before" if receipt.repeated else "is booked"
    amount = money(receipt.amount_nano, account.currency)
    noun = _NOUNS.get(receipt.operation, receipt.operation)
    click.echo(f"The {noun} of {amount} {told}, as {receipt.request_id}.")
    click.echo(
        f"{printable(account.account)} has {money(account.balance_nano, account.currency)}"
        f" and is on level {account.tier}."
    )
