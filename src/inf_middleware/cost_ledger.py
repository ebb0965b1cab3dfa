"""CostLedger."""

from typing import Unpack

from starlette.types import ASGIApp

from inf_middleware.member import Member
from inf_middleware.settings import LedgerOptions
from inf_middleware.stack import LEDGER


class CostLedger(Member):
    """Prices the tokens, keeps the ledger, and emits billing events to sinks.

    Stands alone or with the others, in any order; all options are keyword-only and described at
    `settings.LedgerOptions`.

    Raises:
        ConfigError: An option is unknown, cannot hold, or contradicts another of the stack.
    """

    def __init__(self, app: ASGIApp, **options: Unpack[LedgerOptions]) -> None:
        super().__init__(app, (LEDGER,), options)
