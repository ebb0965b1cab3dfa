"""Who else is in the stack: of ours, the innermost does all the work with the options of all."""

import sys
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

from inf_middleware.domain.errors import ConfigError, MiddlewareError
from inf_middleware.stack import Stack

# Deeper than any real chain of middlewares: a guard against a chain that bites its tail.
_DEPTH_MAX = 1000


class Member:
    """What the three and `Gate` have in common: they find their stack and join it.

    Constructors look inward along `.app`. The innermost of ours leads; the others hand through.
    """

    def __init__(self, app: ASGIApp, kinds: tuple[str, ...], options: Mapping[str, Any]) -> None:
        self.app = app
        inner = _member_within(app)
        self._leads = inner is None
        self._stack: Stack = Stack(app) if inner is None else inner._stack
        try:
            self._stack.add(type(self).__name__, kinds, options)
        except ConfigError as error:
            if not _is_lifespan():
                raise
            self._stack.fault = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if not self._leads:
            await self.app(scope, receive, send)
            return
        try:
            worker = self._stack.worker
        except MiddlewareError as error:
            if scope["type"] == "lifespan":
                # To servers an exception alone is an app without a lifespan, and they begin.
                await receive()
                await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await worker.serve(scope, receive, send)


def _is_lifespan() -> bool:
    """Tell whether Starlette makes its middlewares just now, which it first does in its lifespan.

    What cannot hold is then an exception that its server would not stop for. Whoever constructs us
    in any other place, in a lifespan of their own too, is told at once.
    """
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name in ("_is_lifespan", "__init__"):
        frame = frame.f_back
    if frame.f_code.co_name != "build_middleware_stack":
        return False
    while frame.f_back is not None:
        frame = frame.f_back
        scope = frame.f_locals.get("scope")
        if isinstance(scope, Mapping):
            return scope.get("type") == "lifespan"
    return False


def _member_within(app: object) -> Member | None:
    for _ in range(_DEPTH_MAX):
        if isinstance(app, Member):
            # Its own leader may be further in; they share one stack.
            return app
        app = getattr(app, "app", None)
        if app is None:
            break
    return None
