"""The `inf-middleware` command."""

import logging

import click

from inf_middleware.cli.accounts import account, key
from inf_middleware.cli.catalogue import prices, tiers
from inf_middleware.cli.config import config
from inf_middleware.cli.doctor import doctor
from inf_middleware.cli.events import events
from inf_middleware.cli.init import init
from inf_middleware.cli.ledger import ledger
from inf_middleware.cli.limits import limits
from inf_middleware.cli.movements import credit, grant, recharge, reverse, withdraw
from inf_middleware.cli.serve import serve
from inf_middleware.cli.usage import statement, usage

_SILENT = logging.NullHandler()


@click.group()
@click.version_option(package_name="inf-middleware")
def main() -> None:
    """Look after metering, limits and bills of a model server."""
    # What goes wrong is told by the command itself, once: not by what it calls as well. `serve`
    # shows the log all the same.
    logging.getLogger("inf_middleware").addHandler(_SILENT)


for _command in (
    init,
    serve,
    account,
    key,
    recharge,
    grant,
    credit,
    withdraw,
    reverse,
    usage,
    statement,
    ledger,
    events,
    limits,
    prices,
    tiers,
    config,
    doctor,
):
    main.add_command(_command)
