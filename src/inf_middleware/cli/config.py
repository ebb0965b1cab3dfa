"""`inf-middleware config`: see whether the settings are right, and what is in force."""

from typing import Any

import click
import msgspec

from inf_middleware.cli.in_force import InForce, with_settings
from inf_middleware.cli.table import printable, width
from inf_middleware.settings import DEFAULT, Setting, shown


@click.group()
def config() -> None:
    """See what variables and the settings file say."""


@config.command()
@with_settings
def check(in_force: InForce) -> None:
    """See whether all settings are right; opens nothing.

    Exit code 0, or 2 and one line that says where the mistake is and what would be right.
    """
    given = [s for s in _all(in_force).values() if s.origin != DEFAULT]
    where = "no settings file is named" if in_force.config is None else in_force.config
    noun = "setting" if len(given) == 1 else "settings"
    click.echo(f"Right: {printable(where)}; {len(given)} {noun}, all others are defaults.")


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print records as JSON.")
@with_settings
def show(in_force: InForce, *, as_json: bool) -> None:
    """Show each setting in force, and where it comes from.

    Passwords and keys are not shown. What a program gives to the middlewares itself beats all of
    this, and is not known here.
    """
    if as_json:
        records = {
            name: {"value": _json_value(name, setting.value), "from": setting.origin}
            for name, setting in _all(in_force).items()
        }
        click.echo(msgspec.json.format(msgspec.json.encode(records)).decode())
        return
    rows = [
        (name, printable(shown(name, setting.value)), printable(setting.origin))
        for name, setting in _all(in_force).items()
    ]
    widths = [min(max(width(row[column]) for row in rows), 48) for column in (0, 1)]
    for row in rows:
        padded = [
            cell + " " * max(wide - width(cell), 0) for cell, wide in zip(row, widths, strict=False)
        ]
        click.echo("  ".join([*padded, row[2]]))


def _all(in_force: InForce) -> dict[str, Setting]:
    return {**in_force.settings, **in_force.of_upstream}


def _json_value(name: str, value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else shown(name, value)
