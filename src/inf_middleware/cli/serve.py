"""`inf-middleware serve`: limits and bills before a server that takes no middleware."""

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import Callable

import click
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inf_middleware.cli.examine import CLOCK_APART_MAX_S, fault_of_folder, fault_of_sinks
from inf_middleware.cli.in_force import InForce
from inf_middleware.cli.look_at import look_at
from inf_middleware.cli.table import printable
from inf_middleware.domain.errors import ConfigError, MiddlewareError
from inf_middleware.ledgers.connection import check_file
from inf_middleware.ledgers.sqlite import SqliteLedger
from inf_middleware.ledgers.uris import ledger_of
from inf_middleware.settings import shown
from inf_middleware.upstream import Upstream

# Supervisors kill after 30 s (Kubernetes): running answers end before, so that they are billed.
GRACE_S = 25

# Objects, more than have gone, after which Python looks for garbage among the latest; its own 700
# are those of seven requests that wait. With 10,000 and more it gains nothing further.
COLLECTED_AFTER = 5_000

_TOLD = """\
Listening on {here}, forwarding to {there}
{who}

Try it:
  curl {here}/v1/chat/completions{key} -H "Content-Type: application/json" \\
    -d '{{"model": "MODEL", "messages": [{{"role": "user", "content": "Hello"}}]}}'

Who has used how much:
  inf-middleware usage{looked_up}
"""


@click.command()
@click.option("--upstream", help="The server to forward to, such as http://localhost:8000.")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", default=8088, show_default=True, type=click.IntRange(0, 65535))
@click.option("--config", help="The settings file; `inf-middleware init` writes one.")
@click.option("--accounts", help="A TOML file of accounts.")
@click.option("--ledger", help="The ledger's URI.")
@click.option("--storage", help="Where limits are counted; in this process if not given.")
def serve(
    upstream: str | None, host: str, port: int, config: str | None, **given: str | None
) -> None:
    """Meter, limit and bill what goes to a model server, as a proxy in one process.

    Exit code 2 and one line where something given cannot hold, or cannot be opened at start.
    """
    options = {name: value for name, value in given.items() if value is not None}
    try:
        if upstream is not None:
            _check_upstream(upstream)
            os.environ["INF_MIDDLEWARE_UPSTREAM"] = upstream
        in_force = InForce(config, options)
        if config is not None:
            os.environ["INF_MIDDLEWARE_CONFIG"] = config
        _run(in_force, host, port, options)
    except MiddlewareError as error:
        click.echo(f"inf-middleware: {printable(str(error))}", err=True)
        raise SystemExit(2) from None


def _check_upstream(url: str) -> None:
    try:
        Upstream(url=url)
    except ConfigError as error:
        raise ConfigError(f"--upstream: {error}") from None


def _run(in_force: InForce, host: str, port: int, options: dict[str, str]) -> None:
    try:
        import uvicorn  # noqa: PLC0415 - of an extra, which other commands do without
        from uvicorn.logging import DefaultFormatter  # noqa: PLC0415 - the same

        from inf_middleware.proxy import Proxy, app_from  # noqa: PLC0415 - the same
    except ImportError as error:
        raise ConfigError(
            f"the proxy needs {error.name}; install it: pip install 'inf-middleware[serve]'"
        ) from None
    _show_log(DefaultFormatter("%(levelprefix)s %(message)s"))
    app = app_from(**options)
    assert isinstance(app.app, Proxy)
    _check_files(in_force)
    listener = _listener(host, port)
    name = f"[{host}]" if ":" in host else host
    here = f"http://{name}:{listener.getsockname()[1]}"
    upstream = app.app.upstream
    is_well, found = asyncio.run(look_at(upstream, CLOCK_APART_MAX_S))
    if not is_well:  # it may start after the proxy, which needs it with the first request
        click.echo(f"inf-middleware: warning: the upstream {printable(found)}", err=True)
    starting = _Starting(app, lambda: click.echo(_told(in_force, here, upstream, options)))
    # Forwarded headers are the gate's to believe or not (`trusted_proxies`).
    server = uvicorn.Server(
        uvicorn.Config(
            starting,
            lifespan="on",  # what fails at start ends the process, not the first request
            log_level="warning",
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_S,
        )
    )
    # It has words of its own for a start that failed; ours say why.
    logging.getLogger("uvicorn.error").addFilter(lambda _: starting.failed is None)
    try:
        server.run(sockets=[listener])
    except SystemExit:
        if starting.failed is None:
            raise
    if starting.failed is not None:
        raise starting.failed


def _show_log(form: logging.Formatter) -> None:
    """Show what the library logs, down to INFO, on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(form)
    log = logging.getLogger("inf_middleware")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def spare_garbage_collector() -> None:
    """Have Python look at fewer objects for each request, now that all is made that stays.

    It takes a tenth of the processor's time off each (docs/scale.md).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECTED_AFTER, *gc.get_threshold()[1:])


class _Starting:
    """The app, whose start is told when it is done; `failed` is why it could not start."""

    def __init__(self, app: ASGIApp, started: Callable[[], None]) -> None:
        self._app = app
        self._started = started
        self.failed: MiddlewareError | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return

        async def telling(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed":
                self.failed = ConfigError(message.get("message", ""))
            await send(message)
            if message["type"] == "lifespan.startup.complete":
                spare_garbage_collector()
                self._started()

        with contextlib.suppress(MiddlewareError):  # which was told already
            await self._app(scope, receive, telling)


def _told(in_force: InForce, here: str, upstream: Upstream, options: dict[str, str]) -> str:
    accounts = in_force["accounts"]
    ledger = options.get("ledger")
    if ledger is not None:
        ledger = shown("ledger", ledger)
    return _TOLD.format(
        here=here,
        there=upstream.url,
        who=(
            f"Accounts: {shown('accounts', accounts)}"
            if accounts
            else "No accounts are given: each network address is one, on the level"
            f" {in_force['anonymous']}"
        ),
        key=' -H "Authorization: Bearer KEY"' if accounts else "",
        looked_up="".join(
            f" --{name} {value}"
            for name, value in (("config", in_force.config), ("ledger", ledger))
            if value
        ),
    )


def _check_files(in_force: InForce) -> None:
    for option in ("ledger", "accounts"):
        given = in_force[option]
        made = ledger_of(given) if isinstance(given, str) and "://" in given else None
        if isinstance(made, SqliteLedger):
            fault = fault_of_folder(made.path)
            if fault is not None:
                raise ConfigError(f"{in_force.origin(option)}: {option}: {fault}")
            check_file(made.path)
    fault = fault_of_sinks(in_force["sinks"])
    if fault is not None:
        raise ConfigError(f"{in_force.origin('sinks')}: {fault}")


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {error}; give another --host or --port"
        ) from None
