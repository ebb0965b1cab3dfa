"""`metrics_app`: what Prometheus asks for, as an ASGI app to mount."""

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from inf_middleware.domain.errors import ConfigError
from inf_middleware.observers.needs import check_installed
from inf_middleware.observing import sample_all

_METHODS = ("GET", "HEAD")


def metrics_app() -> ASGIApp:
    """Return an app that answers with the metrics of this process, or of all workers of this host.

    `app.mount("/metrics", metrics_app())`, with `metrics=["prometheus"]` for the middlewares, and
    with several workers PROMETHEUS_MULTIPROC_DIR. Whoever reaches the path reads all of it.

    Raises:
        ConfigError: prometheus-client is not installed.
    """
    check_installed("prometheus")
    return _metrics


async def _metrics(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise ValueError(f"metrics are asked for by HTTP, and this is {scope['type']}")
    from inf_middleware.observers.prometheus import exposition  # noqa: PLC0415 - of an extra

    if scope["method"] not in _METHODS:
        headers = [(b"allow", b"GET, HEAD"), (b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 405, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
        return
    await sample_all()
    accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
    body, content_type = await asyncio.to_thread(exposition, accept.decode("latin-1"))
    headers = [
        (b"content-type", content_type.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def check_metrics_path(option: Callable[[str], Any]) -> None:
    """See that what is told on `metrics_path` is counted.

    Raises:
        ConfigError: There is a path, and no metrics that could be told on it.
    """
    path = option("metrics_path")
    if path is not None and "prometheus" not in option("metrics"):
        raise ConfigError(
            f'metrics_path is {path!r}, and Prometheus is given none: add metrics = ["prometheus"]'
        )


def with_metrics(app: ASGIApp, option: Callable[[str], Any]) -> ASGIApp:
    """Return an app with the metrics on `metrics_path`; as it is where there is none.

    Raises:
        ConfigError: There is a path, and no metrics that could be told on it.
    """
    check_metrics_path(option)
    path = option("metrics_path")
    return app if path is None else _MetricsPath(app, path)


class _MetricsPath:
    """An app with the metrics on one path of it, for servers in which nothing can be mounted."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app = app
        self._path = path
        self._metrics = metrics_app()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "http" and scope["method"] in _METHODS and self._is_asked(scope):
            await self._metrics(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_asked(self, scope: Scope) -> bool:
        path, root = scope["path"], scope.get("root_path", "")
        return path in (self._path, root + self._path)  # some servers leave a mount's part out
