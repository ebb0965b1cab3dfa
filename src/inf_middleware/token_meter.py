"""TokenMeter."""

from typing import Unpack

from starlette.types import ASGIApp

from inf_middleware.member import Member
from inf_middleware.settings import MeterOptions
from inf_middleware.stack import METER


class TokenMeter(Member):
    """Counts the input and output tokens of every request, JSON or streamed.

    Stands alone or with the others, in any order; all options are keyword-only and described at
    `settings.MeterOptions`.

    Raises:
        ConfigError: An option is unknown, cannot hold, or contradicts another of the stack.
    """

    def __init__(self, app: ASGIApp, **options: Unpack[MeterOptions]) -> None:
        super().__init__(app, (METER,), options)
