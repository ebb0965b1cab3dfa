# What type checkers see of the facade, which imports each name when it is first asked for.

from inf_middleware.call.record import CurrentCall, current_call
from inf_middleware.cost_ledger import CostLedger
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.prices import Price, Prices
from inf_middleware.domain.tiers import Account, Tier, Tiers
from inf_middleware.domain.usage import Usage
from inf_middleware.exposition import metrics_app
from inf_middleware.gate import Gate
from inf_middleware.ledgers.book import open_ledger
from inf_middleware.tier_limiter import TierLimiter
from inf_middleware.token_meter import TokenMeter

__version__: str

__all__ = [
    "Account",
    "BillingEvent",
    "ConfigError",
    "CostLedger",
    "CurrentCall",
    "Gate",
    "Price",
    "Prices",
    "Tier",
    "TierLimiter",
    "Tiers",
    "TokenMeter",
    "Usage",
    "current_call",
    "metrics_app",
    "open_ledger",
]
