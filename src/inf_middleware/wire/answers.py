"""What the caller sees when refused, and how the limits stand: headers, bodies, messages.

Source of header names and forms: platform.openai.com/docs/guides/rate-limits and
docs.anthropic.com/en/api/rate-limits (2026-11).
"""

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache

from inf_middleware.domain.limits import Refusal, Standings
from inf_middleware.domain.moments import seconds_written
from inf_middleware.wire.dialect import Dialect

Header = tuple[bytes, bytes]

_RATED = ("requests", "tokens")
_LIMITED = (*_RATED, "concurrency")

# All names of `limit_headers`.
LIMIT_NAMES = frozenset(
    (
        *(
            f"x-ratelimit-{what}-{of}".encode()
            for what in ("limit", "remaining")
            for of in _LIMITED
        ),
        *(f"x-ratelimit-reset-{of}".encode() for of in _RATED),
        *(
            f"anthropic-ratelimit-{of}-{what}".encode()
            for of in _RATED
            for what in ("limit", "remaining", "reset")
        ),
    )
)

_RFC3339 = "%Y-%m-%dT%H:%M:%SZ"

_TYPES = {401: "authentication_error", 402: "billing_error", 403: "permission_error"}

# What Anthropic says otherwise; the rest is alike.
# Source: docs.anthropic.com/en/api/errors (2026-11).
_ANTHROPIC_TYPES = {404: "not_found_error", 413: "request_too_large", 503: "overloaded_error"}

UNITS = {60.0: "minute", 3_600.0: "hour", 86_400.0: "day"}


def limit_headers(
    standings: Standings, dialect: Dialect, now_ns: Callable[[], int]
) -> list[Header]:
    """Return the `x-ratelimit-*` headers; concurrency has no reset, for nobody knows it.

    Where the dialect has names of its own for limits, those too; `now_ns` is the wall clock.
    """
    requests, tokens, concurrency = standings.requests, standings.tokens, standings.concurrency
    limit_requests, reset_requests, limit_tokens, reset_tokens, limit_concurrency = _lasting(
        requests.limit, requests.reset_s, tokens.limit, tokens.reset_s, concurrency.limit
    )
    headers = [
        limit_requests,
        (b"x-ratelimit-remaining-requests", b"%d" % requests.remaining),
        reset_requests,
        limit_tokens,
        (b"x-ratelimit-remaining-tokens", b"%d" % tokens.remaining),
        reset_tokens,
        limit_concurrency,
        (b"x-ratelimit-remaining-concurrency", b"%d" % concurrency.remaining),
    ]
    if dialect.errors == "anthropic":
        return _anthropic_headers(standings, now_ns() / 1e9) + headers
    return headers


# Limits are those of a few levels, and what was just added to leaves after the whole window: these
# headers are nearly always the same.
@lru_cache(maxsize=256)
def _lasting(
    requests: int, requests_reset_s: float, tokens: int, tokens_reset_s: float, concurrency: int
) -> tuple[Header, Header, Header, Header, Header]:
    return (
        (b"x-ratelimit-limit-requests", b"%d" % requests),
        (b"x-ratelimit-reset-requests", duration(requests_reset_s).encode()),
        (b"x-ratelimit-limit-tokens", b"%d" % tokens),
        (b"x-ratelimit-reset-tokens", duration(tokens_reset_s).encode()),
        (b"x-ratelimit-limit-concurrency", b"%d" % concurrency),
    )


def _anthropic_headers(standings: Standings, now_s: float) -> list[Header]:
    headers: list[Header] = []
    for name, standing in ((b"requests", standings.requests), (b"tokens", standings.tokens)):
        # Whole seconds, as Anthropic writes them, rounded up: then it has surely come.
        reset = datetime.fromtimestamp(_ceil(now_s + standing.reset_s), UTC)
        headers += [
            (b"anthropic-ratelimit-" + name + b"-limit", b"%d" % standing.limit),
            (b"anthropic-ratelimit-" + name + b"-remaining", b"%d" % standing.remaining),
            (b"anthropic-ratelimit-" + name + b"-reset", reset.strftime(_RFC3339).encode()),
        ]
    return headers


def duration(seconds: float) -> str:
    """Write a time as OpenAI does, rounded up to the millisecond: "59.5s", "1m0s", "2h0m5s"."""
    ms = _ceil(seconds * 1000)
    if ms < 60_000:
        return f"{ms / 1000:g}s"
    minutes, rest_ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    text = f"{minutes}m{rest_ms / 1000:g}s"
    return f"{hours}h{text}" if hours else text


def retry_headers(retry_after_s: float) -> list[Header]:
    """Return when to try again, rounded up in both units: waiting just that long is enough."""
    return [
        (b"retry-after", b"%d" % max(_ceil(retry_after_s), 1)),
        (b"retry-after-ms", b"%d" % max(_ceil(retry_after_s * 1000), 1)),
    ]


def limit_message(tier: str, refusal: Refusal) -> str:
    """Say which limit refuses, how much of it is used and asked for, and when to try again."""
    of = f" of {refusal.scope}" if refusal.scope else ""
    used, requested = f"{refusal.used:,}", f"{refusal.requested:,}"
    wait = seconds_written(_ceil(refusal.retry_after_s * 1000) / 1000)
    if refusal.code == "concurrency_limit_exceeded":
        return (
            f"Level {tier} allows {_counted(refusal.limit, 'request')}{of} in progress at a time:"
            f" {used} used, {requested} requested. Nobody knows when one ends; as an estimate,"
            f" try again in {wait} s."
        )
    metric = "request" if refusal.code == "requests_limit_exceeded" else "token"
    unit = UNITS.get(refusal.window_s) or f"{seconds_written(refusal.window_s)} seconds"
    return (
        f"Level {tier} allows {_counted(refusal.limit, metric)}{of} per {unit}:"
        f" {used} used, {requested} requested. Try again in {wait} s."
    )


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("s" if number != 1 else "")


def error_type(status: int, dialect: Dialect) -> str:
    """Return the `type` of an error by its status, in the words of a dialect."""
    if dialect.errors == "anthropic" and status in _ANTHROPIC_TYPES:
        return _ANTHROPIC_TYPES[status]
    if status in _TYPES:
        return _TYPES[status]
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def error_response(
    dialect: Dialect,
    *,
    status: int,
    code: str,
    message: str,
    request_id: str,
    param: str | None = None,
    headers: Sequence[Header] = (),
    should_retry: bool | None = None,
) -> tuple[int, list[Header], bytes]:
    """Return status, headers and body of a refusal.

    What trying again does not cure says `x-should-retry: false`, since some SDKs would: every 4xx
    but 429, unless `should_retry` tells otherwise.
    """
    body = dialect.error_body(message, type=error_type(status, dialect), code=code, param=param)
    named = request_id.encode()
    all_headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", named),
        (b"request-id", named),
        *headers,
    ]
    if should_retry is None:
        should_retry = status == 429 or status >= 500
    if not should_retry:
        all_headers.append((b"x-should-retry", b"false"))
    return status, all_headers, body


def _ceil(value: float) -> int:
    # Times are whole microseconds: what lies below that is noise of the floating point.
    return math.ceil(round(value, 6))
