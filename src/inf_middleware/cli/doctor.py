"""`inf-middleware doctor`: whether a server with these settings could do its work here."""

import asyncio

import click
import msgspec

from inf_middleware.cli.examine import Finding, examine
from inf_middleware.cli.in_force import InForce, with_settings
from inf_middleware.cli.table import printable


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print records as JSON.")
@with_settings
def doctor(in_force: InForce, *, as_json: bool) -> None:
    """Reach the storage, open the ledger, load the tokenizers, check clocks and versions.

    Exit code 1 if something is wrong.
    """
    findings = asyncio.run(_told(in_force, tells=not as_json))
    wrong = sum(not finding.is_right for finding in findings)
    if as_json:
        records = [
            {"part": part, "right": is_right, "words": words} for part, is_right, words in findings
        ]
        click.echo(msgspec.json.format(msgspec.json.encode(records)).decode())
    else:
        things = "1 thing is" if wrong == 1 else f"{wrong} things are"
        click.echo(f"\n{things} wrong." if wrong else "\nAll is well.")
    raise SystemExit(1 if wrong else 0)


async def _told(in_force: InForce, *, tells: bool) -> list[Finding]:
    findings = []
    async for finding in examine(in_force):
        findings.append(finding)
        if tells:
            mark = "ok   " if finding.is_right else "WRONG"
            click.echo(f"{mark}  {finding.part:<9} {printable(finding.words)}")
    return findings
