"""Gate: the three as one middleware."""

from typing import Unpack

from starlette.types import ASGIApp

from inf_middleware.member import Member
from inf_middleware.settings import GateOptions
from inf_middleware.stack import LEDGER, LIMITER, METER


class Gate(Member):
    """TokenMeter, TierLimiter and CostLedger in one, with the options of all three.

    `app.add_middleware(Gate, …)`, or `Gate(app, …)` around an app that is built already.

    Raises:
        ConfigError: An option is unknown, cannot hold, or contradicts another of the stack.
    """

    def __init__(self, app: ASGIApp, **options: Unpack[GateOptions]) -> None:
        super().__init__(app, (METER, LIMITER, LEDGER), options)
