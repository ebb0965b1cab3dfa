"""The `inf-middleware` command."""

import click

from inf_middleware.cli.events import events
from inf_middleware.cli.limits import limits
from inf_middleware.cli.usage import usage


@click.group()
@click.version_option(package_name="inf-middleware")
def main() -> None:
    """Look after metering, limits and bills of a model server."""


main.add_command(events)
main.add_command(limits)
main.add_command(usage)
