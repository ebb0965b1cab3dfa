"""Settlement: what a call used, what it costs, and both made known, once.

It is idempotent: an interrupted settlement is simply run again, with the same event.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable

import anyio
from msgspec.structs import replace

from inf_middleware.call.admission import count_input, reserved_output
from inf_middleware.call.deferred import deferred
from inf_middleware.call.handed import handed_usage
from inf_middleware.call.record import Billing, Call, log
from inf_middleware.domain.errors import LedgerUnavailable, LimitsUnavailable
from inf_middleware.domain.events import BLANK, BillingEvent, priced, storable
from inf_middleware.domain.moments import rfc3339
from inf_middleware.domain.money import decimal_string
from inf_middleware.domain.prices import Found
from inf_middleware.domain.usage import Usage
from inf_middleware.wire.reader import AnswerReader

# Between two tries of a ledger that failed: short against `settle_timeout_s`, long for a disk.
_RETRY_S = 0.05

# Names of models and paths come from callers: their warnings must not fill memory or logs.
WARNINGS_MAX = 100

# From this status on nothing was answered: the client is sent to another place, or it failed.
# Source: RFC 9110, section 15.
_NO_ANSWER = 300
_NO_CONTENT = 204

# Of text that was too long to keep only the bytes are known; English and code run near this.
_BYTES_PER_TOKEN = 4


async def settle(call: Call) -> bool:
    """Settle a call with store and ledger; False where the ledger did not take it in time.

    Safe to be called again: what is told already stays told. Who is cancelled meanwhile does so,
    shielded. A call that was refused has nothing to settle.
    """
    if call.refused:
        return True
    if call.hold is not None:
        await call.hold.settled()
    usage = call.usage or _usage_told(call)
    if usage is None:
        usage = await _usage_counted(call)
        usage = call.usage or usage  # an earlier settlement may have ended meanwhile
    if call.usage is None and call.billed is not None:
        usage = _beyond(usage, call.billed)
    call.usage = usage
    reader = call.reader
    if reader is not None and (reader.deferred or deferred.calls or _goes_on(call)):
        await _defer(call)
    billing = call.billing
    durable = None
    if billing is not None and not call.recorded:
        call.event = call.event or event_of(call, billing, usage)
        durable = billing.ledger.settle(call.event)
    releasing = None
    if call.admission is not None:
        tokens: int | None = usage.input_tokens + usage.output_tokens
        if usage.basis == "estimated" and call.dialect.has_text and not call.is_stream:
            tokens = None  # an aborted answer without usage: what it really took is not known
        if not release_here(call, tokens):
            releasing = _begin_release(call, tokens)
    failure = None
    try:
        # First, since it takes longer, mostly: then the store has answered, and a call is woken
        # once for both.
        if durable is not None:
            await durable
            call.recorded = True
    except LedgerUnavailable as error:
        failure = error
    finally:
        if releasing is not None:
            await _end_release(call, releasing)
    if billing is not None and call.event is not None and failure is not None:
        call.recorded = await _retry(billing, call.event, failure)
    call.settled = True
    return call.recorded or billing is None


def _goes_on(call: Call) -> bool:
    """Tell whether a stream was cut whose answer is made on, to be fetched later."""
    request, reader = call.request, call.reader
    if request is None or not request.background or not isinstance(reader, AnswerReader):
        return False
    return call.is_stream and reader.usage is None and not reader.failed


async def _defer(call: Call) -> None:
    """Take note of an answer that is still to be fetched, or of one that was due."""
    reader = call.reader
    if isinstance(reader, AnswerReader) and (reader.deferred or _goes_on(call)):
        reader.deferred = True
        await count_input(call)  # while its body is there: the answer may tell no usage
    deferred.note(call)


def _beyond(usage: Usage, billed: Usage) -> Usage:
    """Return what of a usage is not billed yet."""
    inputs = max(usage.input_tokens - billed.input_tokens, 0)
    outputs = max(usage.output_tokens - billed.output_tokens, 0)
    return Usage(
        inputs,
        outputs,
        min(usage.cached_input_tokens, inputs),
        min(usage.cache_write_tokens, inputs),
        min(usage.reasoning_tokens, outputs),
        usage.basis,
    )


def release_here(call: Call, tokens: int | None) -> bool:
    """Free the call's slot as `release` does; False where the store is not of this process."""
    limiting = call.limiting
    if limiting is None or limiting.local is None or call.admission is None:
        return False
    if not call.released:
        call.released = True
        limiting.leases.let_go(call.id)
        try:
            limiting.local.settle_now(call.admission, tokens)
        finally:
            limiting.waiting.ended(call.admission.ask.account_id)
    return True


async def release(call: Call, tokens: int | None) -> None:
    """Free the call's slot, with the tokens it used (None: its reservation stays)."""
    if not release_here(call, tokens):
        releasing = _begin_release(call, tokens)
        if releasing is not None:
            await _end_release(call, releasing)


def _begin_release(call: Call, tokens: int | None) -> Awaitable[object] | None:
    """Ask the store to free the call's slot; None where there is none to be freed."""
    if call.admission is None or call.limiting is None or call.released:
        return None
    call.limiting.leases.let_go(call.id)
    settling = call.limiting.store.settle(call.admission, tokens)
    # A coroutine would begin only when it is awaited, after the ledger's commit.
    return asyncio.ensure_future(settling) if inspect.iscoroutine(settling) else settling


async def _end_release(call: Call, releasing: Awaitable[object]) -> None:
    assert call.admission is not None
    assert call.limiting is not None
    told = True
    try:
        await releasing
    except LimitsUnavailable:
        log.exception("call %s could not be settled with the limits' store", call.id)
    except asyncio.CancelledError:
        told = False  # the store has heard nothing, perhaps: it is told again
        raise
    finally:
        if told and not call.released:
            call.released = True
            call.limiting.waiting.ended(call.admission.ask.account_id)


async def _retry(billing: Billing, event: BillingEvent, error: LedgerUnavailable) -> bool:
    deadline = time.monotonic() + billing.settle_timeout_s
    while time.monotonic() < deadline:
        await anyio.sleep(_RETRY_S)
        try:
            await billing.ledger.settle(event)
        except LedgerUnavailable as again:
            error = again
        else:
            return True
    if billing.spool is not None:
        try:
            await billing.spool.keep(event)
        except LedgerUnavailable as again:
            error = again
        else:
            return True
    billing.health.failed()
    billing.lost.remember(event.id)
    log.error(
        "call %s of account %s could not be recorded within %g s and is not billed: %s",
        event.id,
        event.account,
        billing.settle_timeout_s,
        error,
    )
    return False


def _usage_told(call: Call) -> Usage | None:
    """Return the usage of a call; None where its texts must be counted for it."""
    if call.told is not None:
        return call.told
    if call.status is None and call.disconnected:
        return None
    if call.status is None or call.status >= _NO_ANSWER or call.status == _NO_CONTENT:
        return Usage(basis="counted")  # it failed, or was sent on, before its first token
    reader = call.reader
    if reader is not None:
        if reader.deferred:
            return Usage(basis="estimated")  # what it takes is told when it is fetched
        if not reader.has_output and (reader.failed or _failed_first(call)):
            return Usage(basis="counted")
        told = reader.usage_of_all
        if told is not None:
            return told
    return handed_usage(call.state)


async def _usage_counted(call: Call) -> Usage:
    reader = call.reader
    if not isinstance(reader, AnswerReader) or (call.status is None and call.disconnected):
        # The model may have worked to the end: its input is known, its output is not.
        return Usage(await count_input(call), 0, basis="estimated")
    return await _counted(call, reader, reader.usage or Usage())


def _failed_first(call: Call) -> bool:
    """Tell whether the app raised before it had made anything, and for no client that had left."""
    raised = isinstance(call.failure, Exception) and not call.disconnected
    return raised and not call.begun and (call.reader is None or call.reader.usage is None)


async def _counted(call: Call, reader: AnswerReader, told: Usage) -> Usage:
    """Count what no report contains; the parts of a report that hold are taken."""
    exact = True
    if reader.tells_input:
        tokens = told.input_tokens
    else:
        tokens, exact = await count_input(call), call.input_exact
    outputs = 0
    if reader.tells_output:
        outputs = told.output_tokens
    elif reader.has_output:
        count = await call.metering.counters.of(call.model).count(reader.texts())
        beyond = reader.text_overflow_bytes // _BYTES_PER_TOKEN
        if reader.unread_bytes and call.request is not None:
            # It may be anything: no more than what was reserved for it.
            beyond += min(reader.unread_bytes // _BYTES_PER_TOKEN, reserved_output(call))
        outputs = count.tokens + beyond
        exact = exact and count.exact and not beyond
        if call.request is not None and call.request.echo:
            # The answer repeats the prompt, which is counted as input.
            outputs, exact = max(outputs - await count_input(call), 0), False
        outputs = max(outputs, told.output_tokens)
    elif not (call.is_stream and call.dialect.has_text):
        # A 200 without usage and without text, such as vLLM's empty one after a client left.
        exact = False
    return Usage(
        tokens,
        outputs,
        cached_input_tokens=min(told.cached_input_tokens, tokens),
        cache_write_tokens=min(told.cache_write_tokens, tokens),
        reasoning_tokens=min(told.reasoning_tokens, outputs),
        basis="counted" if exact else "estimated",
    )


def outcome_of(call: Call) -> str:
    """Say how a call ended, by what happened to its answer."""
    if call.exhausted:
        return "balance_exhausted"
    if call.status is not None and call.status >= _NO_ANSWER:
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
