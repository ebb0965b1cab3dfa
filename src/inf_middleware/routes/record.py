"""An account as JSON, in the words of events: counts are integers, amounts are texts."""

from typing import Any

from inf_middleware.domain.moments import written
from inf_middleware.domain.money import decimal_string
from inf_middleware.domain.tiers import Tier
from inf_middleware.routes.gather import AccountShown, LevelShown, LimitShown
from inf_middleware.routes.usage import DAYS, Sums, Usage, most_used

# As many as a page shows; what is left of them is one.
MODELS_SHOWN = 8


def record_of(shown: AccountShown) -> dict[str, Any]:
    """Return what `GET /account` answers."""
    balance = shown.balance
    return {
        "account": shown.account,
        "key_id": shown.key_id,
        "at": written(shown.at),
        "tier": _level(shown.level),
        "limits": None if shown.limits_state == "none" else [_limit(one) for one in shown.limits],
        "currency": shown.currency,
        "mode": None if shown.ledger_state == "none" else shown.mode,
        "balance": None
        if balance is None
        else {
            **_amount("balance", balance.balance_nano),
            **_amount("held", balance.held_nano),
            **_amount("credit_limit", balance.credit_limit_nano),
            **_amount("available", balance.available_nano),
        },
        "usage": None if shown.usage is None else _usage(shown.usage, str(shown.zone)),
        "unavailable": [
            name
            for name, state in (("limits", shown.limits_state), ("ledger", shown.ledger_state))
            if state == "away"
        ],
    }


def _level(level: LevelShown) -> dict[str, Any]:
    following = level.next
    return {
        **_tier(level.tier),
        "pinned": level.pinned,
        **_amount("recharged", level.recharged_nano),
        "next": None
        if following is None
        else {
            **_tier(following),
            **_amount("recharged_from", following.recharged_from_nano),
            **_amount("missing", level.missing_nano),
        },
    }


def _tier(tier: Tier) -> dict[str, Any]:
    return {
        "name": tier.name,
        "concurrency": tier.concurrency,
        "requests_per_minute": tier.requests_per_minute,
        "tokens_per_minute": tier.tokens_per_minute,
    }


def _limit(limit: LimitShown) -> dict[str, Any]:
    return {
        "limit_of": limit.kind,
        "model": limit.model,
        "window_s": limit.window_s or None,
        "limit": limit.limit,
        "used": limit.used,
        "remaining": limit.remaining,
        "reset_s": limit.reset_s,
    }


def _usage(usage: Usage, zone: str) -> dict[str, Any]:
    return {
        "days": DAYS,
        "timezone": zone,
        "total": _sums(usage.total),
        "by_day": [{"day": day.isoformat(), **_sums(sums)} for day, sums in usage.by_day],
        "by_model": [
            {"model": model, **_sums(sums)} for model, sums in most_used(usage, MODELS_SHOWN)
        ],
    }


def _sums(sums: Sums) -> dict[str, Any]:
    return {
        "requests": sums.requests,
        "input_tokens": sums.input_tokens,
        "output_tokens": sums.output_tokens,
        "total_tokens": sums.total_tokens,
        **_amount("amount", sums.amount_nano),
    }


def _amount(name: str, nano: int) -> dict[str, str]:
    return {f"{name}_nano": str(nano), name: decimal_string(nano)}
