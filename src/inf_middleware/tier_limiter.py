"""TierLimiter."""

from typing import Unpack

from starlette.types import ASGIApp

from inf_middleware.member import Member
from inf_middleware.settings import LimiterOptions
from inf_middleware.stack import LIMITER


class TierLimiter(Member):
    """Holds each account to its level: concurrency, requests and tokens per minute.

    Stands alone or with the others, in any order; all options are keyword-only and described at
    `settings.LimiterOptions`.

    Raises:
        ConfigError: An option is unknown, cannot hold, or contradicts another of the stack.
    """

    def __init__(self, app: ASGIApp, **options: Unpack[LimiterOptions]) -> None:
        super().__init__(app, (LIMITER,), options)
