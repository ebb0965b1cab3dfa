"""`inf-middleware limits`: how an account stands in the shared storage, and freeing its slots.

Keys are hashed there, so that the storage's own tools cannot tell whose they are.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from inf_middleware.cli.common import config_option, setting
from inf_middleware.cli.table import printable, table
from inf_middleware.domain.errors import ConfigError, LimitsUnavailable
from inf_middleware.domain.moments import seconds_written
from inf_middleware.settings import MEMORY, Sources
from inf_middleware.stores.redis import RedisStore, ShownGroup
from inf_middleware.wire.answers import UNITS, duration

# An operator waits longer than a caller, and looking through all keys takes a while.
_TIMEOUT_S = 10.0


def _command(function: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Give a command the storage; what goes wrong is one line, and exit code 2."""

    @click.option(
        "--storage",
        metavar="URI",
        help="The storage that TierLimiter is given, such as redis://localhost:6379; without it"
        " that of the settings.",
    )
    @click.option("--deployment", help="The deployment that the middlewares are given, likewise.")
    @config_option
    @click.option("--json", "as_json", is_flag=True, help="Print records as JSON.")
    @functools.wraps(function)
    def wrapped(
        storage: str | None, deployment: str | None, config: Path | None, **options: Any
    ) -> None:
        async def run() -> None:
            sources = Sources(config)
            uri = setting(sources, "storage", storage)
            if uri == MEMORY:
                raise ConfigError(
                    "limits in memory:// live in each worker process, and nobody else can see them;"
                    " the storage that they share is given by --storage, or by the settings"
                )
            name = setting(sources, "deployment", deployment)
            store = RedisStore(uri, deployment=name, timeout_s=_TIMEOUT_S)
            try:
                await function(store, **options)
            finally:
                await store.aclose()

        try:
            asyncio.run(run())
        except (ConfigError, LimitsUnavailable) as error:
            click.echo(f"inf-middleware: {printable(str(error))}", err=True)
            raise SystemExit(2) from None

    return wrapped


@click.group()
def limits() -> None:
    """See how the limits of an account stand in the shared storage, and free its slots."""


@limits.command()
@click.argument("account")
@_command
async def show(store: RedisStore, account: str, as_json: bool) -> None:
    """Show requests in progress, and what each window holds.

    ACCOUNT is an account's id. Looks through all keys of the storage.
    """
    groups = await store.show(account)
    if as_json:
        records = [_record(account, group) for group in groups]
        click.echo(msgspec.json.format(msgspec.json.encode(records)).decode())
    elif groups:
        click.echo(_table(groups))
    else:
        click.echo(
            f"Nothing is counted for account {printable(account)} just now: it has been idle, or"
            " the id or the deployment is another."
        )


@limits.command()
@click.argument("account")
@_command
async def release(store: RedisStore, account: str, as_json: bool) -> None:
    """Free all slots of an account now; what its requests are known to have used stays counted.

    Slots of a process that died free themselves within a lease. Requests that still run go on,
    without a slot.
    """
    released = await store.release(account)
    if as_json:
        click.echo(msgspec.json.encode({"account": account, "released": released}).decode())
    else:
        click.echo(f"{released} slots of account {printable(account)} are free again.")


def _record(account: str, group: ShownGroup) -> dict[str, Any]:
    return {
        "account": account,
        "model": group.scope or None,
        "in_progress": group.running,
        "lost_leases": group.lost,
        "windows": [window._asdict() for window in group.windows],
    }


def _table(groups: list[ShownGroup]) -> str:
    rows: list[tuple[str, ...]] = []
    for group in groups:
        scope = group.scope or "all models"
        lost = f" ({group.lost} lost leases remembered)" if group.lost else ""
        rows.append((scope, f"in progress{lost}", f"{group.running:,}", ""))
        for window in group.windows:
            per = UNITS.get(window.window_s) or f"{seconds_written(window.window_s)} s"
            rows.append(
                (
                    scope,
                    f"{window.metric} per {per}",
                    f"{window.used:,}",
                    duration(window.reset_s) if window.reset_s else "",
                )
            )
    return table(("models", "limit", "used", "empty in"), rows, left=2, total=False)
