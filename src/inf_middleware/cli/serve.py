"""`inf-middleware serve`: limits and bills before a server that takes no middleware."""

import os
import socket

import click

from inf_middleware.cli.common import setting
from inf_middleware.cli.table import printable
from inf_middleware.domain.errors import ConfigError
from inf_middleware.settings import Sources, shown

# Supervisors kill after 30 s (Kubernetes): running answers end before, so that they are billed.
GRACE_S = 25

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
    """Meter, limit and bill what goes to a model server, as a proxy in one process."""
    if config is not None:
        os.environ["INF_MIDDLEWARE_CONFIG"] = config
    if upstream is not None:
        os.environ["INF_MIDDLEWARE_UPSTREAM"] = upstream
    try:
        _run(host, port, {name: value for name, value in given.items() if value is not None})
    except ConfigError as error:
        click.echo(f"inf-middleware: {printable(str(error))}", err=True)
        raise SystemExit(2) from None


def _run(host: str, port: int, options: dict[str, str]) -> None:
    try:
        import uvicorn  # noqa: PLC0415 - of an extra, which other commands do without

        from inf_middleware.proxy import Proxy, app_from  # noqa: PLC0415 - the same
    except ImportError as error:
        raise ConfigError(
            f"the proxy needs {error.name}; install it: pip install 'inf-middleware[serve]'"
        ) from None
    app = app_from(**options)
    sources = Sources()
    assert isinstance(app.app, Proxy)
    listener = _listener(host, port)
    name = f"[{host}]" if ":" in host else host
    here = f"http://{name}:{listener.getsockname()[1]}"
    accounts = setting(sources, "accounts", options.get("accounts"))
    ledger = options.get("ledger")
    click.echo(
        _TOLD.format(
            here=here,
            there=app.app.upstream.url,
            who=(
                f"Accounts: {shown('accounts', accounts)}"
                if accounts
                else "No accounts are given: each network address is one, on the lowest level"
            ),
            key=' -H "Authorization: Bearer KEY"' if accounts else "",
            looked_up="".join(
                f" --{name} {value}"
                for name, value in (("config", sources.config), ("ledger", ledger))
                if value
            ),
        )
    )
    # Forwarded headers are the gate's to believe or not (`trusted_proxies`).
    settings = uvicorn.Config(
        app,
        lifespan="on",  # what fails at start ends the process, not the first request
        log_level="warning",
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE_S,
    )
    uvicorn.Server(settings).run(sockets=[listener])


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on: {error}; give another --host or --port"
        ) from None
