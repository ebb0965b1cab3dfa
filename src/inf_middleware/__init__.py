"""Meter, limit and bill the use of a language model server, as ASGI middlewares.

    app = FastAPI()
    app.add_middleware(TokenMeter)
    app.add_middleware(TierLimiter, accounts={"sk-demo": "free"})
    app.add_middleware(CostLedger, sinks={"mine": send})    # async def send(events)

Counts input and output tokens of every request, JSON or streamed; holds each account to its
level's concurrency, requests and tokens per minute; keeps a double-entry ledger and emits one
billing event per admitted request.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each name lives: it is imported when it is first asked for, so that nobody waits for what he
# does not use. Type checkers read the same names in `__init__.pyi`.
_HOMES = {
    "Account": "domain.tiers",
    "BillingEvent": "domain.events",
    "ConfigError": "domain.errors",
    "CostLedger": "cost_ledger",
    "CurrentCall": "call.record",
    "Gate": "gate",
    "Price": "domain.prices",
    "Prices": "domain.prices",
    "Tier": "domain.tiers",
    "TierLimiter": "tier_limiter",
    "Tiers": "domain.tiers",
    "TokenMeter": "token_meter",
    "Usage": "domain.usage",
    "current_call": "call.record",
    "metrics_app": "exposition",
    "open_ledger": "ledgers.book",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
