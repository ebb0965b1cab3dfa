"""The `inf-middleware` command."""

import click

from inf_middleware.cli.config import config
from inf_middleware.cli.doctor import doctor
from inf_middleware.cli.events import events
from inf_middleware.cli.usage import usage


@click.group()
@click.version_option(package_name="inf-middleware")
def main() -> None:
    """Look after metering, limits and bills of a model server."""


main.add_command(config)
main.add_command(doctor)
main.add_command(events)
main.add_command(usage)
