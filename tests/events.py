"""Billing events for tests."""

from typing import Any

from inf_middleware import BillingEvent, Price, Usage
from inf_middleware.domain.events import priced
from inf_middleware.domain.ids import uuid7
from inf_middleware.domain.money import decimal_string

PRICE = Price("inf-chat-v1", "10", "20")


def event_of(number: int = 0, *, usage: Usage | None = None, **fields: Any) -> BillingEvent:
    """An event as a settled call makes it."""
    lines, amount = priced(PRICE, usage or Usage(100 + number, 10))
    told: dict[str, Any] = {
        "request_id": uuid7(1_790_000_000_000_000_000 + number * 1_000_000),
        "account": "acme",
        "key_id": "abc123",
        "tier": "Tier1",
        "endpoint": "/v1/chat/completions",
        "model": "inf-chat-v1",
        "response_model": "inf-chat-v1",
        "response_id": "chatcmpl-1",
        "input_tokens": (usage or Usage(100 + number, 10)).input_tokens,
        "output_tokens": (usage or Usage(100 + number, 10)).output_tokens,
        "cached_input_tokens": 0,
        "cache_write_tokens": 0,
        "reasoning_tokens": 0,
        "basis": "reported",
        "lines": lines,
        "amount_nano": str(amount),
        "amount": decimal_string(amount),
        "currency": "CNY",
        "price_version": "inf-2026-11/inf-chat-v1",
        "outcome": "complete",
        "unpriced": False,
        "started_at": "2026-11-24T00:00:00.000000Z",
        "settled_at": "2026-11-24T00:00:01.000000Z",
        "metadata": {},
        "source": "urn:inf-middleware:default",
    }
    return BillingEvent(**{**told, **fields})
