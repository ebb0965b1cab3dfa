"""The `inf-middleware` command."""

import click

from inf_middleware.cli.events import events
from inf_middleware.cli.init import init
from inf_middleware.cli.serve import serve
from inf_middleware.cli.usage import usage


@click.group()
@click.version_option(package_name="inf-middleware")
def main() -> None:
    """Look after metering, limits and bills of a model server."""


main.add_command(events)
main.add_command(init)
main.add_command(serve)
main.add_command(usage)
