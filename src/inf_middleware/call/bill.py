"""The bill of a call: how it ended, what it costs, and the event that says so."""

from msgspec.structs import replace

from inf_middleware.call.record import Billing, Call, log
from inf_middleware.domain.events import BLANK, BillingEvent, priced, storable
from inf_middleware.domain.moments import rfc3339
from inf_middleware.domain.money import decimal_string
from inf_middleware.domain.prices import Found
from inf_middleware.domain.usage import Usage

# Names of models and paths come from callers: their warnings must not fill memory or logs.
WARNINGS_MAX = 100

# From this status on nothing was answered: the client is sent to another place, or it failed.
# Source: RFC 9110, section 15.
NO_ANSWER = 300


def outcome_of(call: Call) -> str:
    """Say how a call ended, by what happened to its answer."""
    if call.exhausted:
        return "balance_exhausted"
    if call.status is not None and call.status >= NO_ANSWER:
        return "upstream_error"
    if call.reader is not None and call.reader.failed:
        return "upstream_error"
    if call.disconnected:  # before the end, however cleanly the app then ended
        return "client_disconnect"
    if call.ended:
        return "complete"
    if call.failure is not None and not isinstance(call.failure, Exception):
        return "shutdown"  # cancelled by the server while the client was still there
    return "upstream_error"


def price_of(call: Call, billing: Billing) -> Found | None:
    """Return the price a call is charged by; None where it has none."""
    if call.found is None and not isinstance(billing.unpriced, str):
        return Found(billing.unpriced, f"unpriced/{billing.unpriced.model}")
    return call.found


def event_of(
    call: Call, billing: Billing, usage: Usage, outcome: str | None = None
) -> BillingEvent:
    """Make the billing event of a call, as it stands."""
    account, tier, reader = call.account, call.tier, call.reader
    assert account is not None
    assert tier is not None
    found = price_of(call, billing)
    unpriced = found is None or found.price is billing.unpriced
    if unpriced:
        _warn_once(
            billing, f"model {call.model!a} has no price: its calls are recorded as unpriced"
        )
    outcome = outcome or outcome_of(call)
    is_empty = not usage.input_tokens and not usage.output_tokens
    if is_empty and not call.dialect.has_text and outcome == "complete":
        _warn_once(billing, f"calls of {call.endpoint!a} tell no usage: recorded with 0 tokens")
    lines, amount_nano = priced(found.price, usage) if found else ((), 0)
    metadata = dict(account.metadata)
    if call.retry_of is not None:
        metadata["retry_of"] = call.retry_of
    asked = replace(
        BLANK,
        request_id=call.id,
        account=account.id,
        key_id=call.key_id,
        tier=tier.name,
        endpoint=storable(call.endpoint) or "",
        model=storable(call.model),
        currency=call.price_list.currency,
        price_version=found.version if found else None,
        would_refuse=call.would_refuse,
        unpriced=unpriced,
        idempotency_key=call.idempotency_key,
        started_at=rfc3339(call.started_ns),
        metadata=metadata,
        source=f"urn:inf-middleware:{call.parts.deployment}",
    )
    return replace(
        asked,
        response_model=storable(reader.model) if reader else None,
        response_id=storable(reader.response_id) if reader else None,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        basis=usage.basis,
        lines=lines,
        amount_nano=str(amount_nano),
        amount=decimal_string(amount_nano),
        outcome=outcome,
        settled_at=rfc3339(call.parts.now_ns()),
    )


def _warn_once(billing: Billing, message: str) -> None:
    if message not in billing.warned and len(billing.warned) < WARNINGS_MAX:
        billing.warned.add(message)
        log.warning("%s", message)
