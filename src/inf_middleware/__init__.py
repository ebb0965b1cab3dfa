"""Meter, limit and bill the use of a language model server, as ASGI middlewares.

    app = FastAPI()
    app.add_middleware(TokenMeter)
    app.add_middleware(TierLimiter, accounts={"sk-demo": "free"})
    app.add_middleware(CostLedger, sinks={"mine": send})    # async def send(events)

Counts input and output tokens of every request, JSON or streamed; holds each account to its
level's concurrency, requests and tokens per minute; keeps a double-entry ledger and emits one
billing event per admitted request.
"""

from inf_middleware.call.record import CurrentCall, current_call
from inf_middleware.cost_ledger import CostLedger
from inf_middleware.domain.errors import ConfigError
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.prices import Price, Prices
from inf_middleware.domain.tiers import Account, Tier, Tiers
from inf_middleware.domain.usage import Usage
from inf_middleware.gate import Gate
from inf_middleware.ledgers.book import open_ledger
from inf_middleware.routes import account_routes, admin_routes
from inf_middleware.tier_limiter import TierLimiter
from inf_middleware.token_meter import TokenMeter

__version__ = "0.1.0"

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
    "account_routes",
    "admin_routes",
    "current_call",
    "open_ledger",
]
