"""Settlement: what a call used, what it costs, and both made known, once.

It is idempotent: an interrupted settlement is simply run again, with the same event.
"""

import asyncio
import inspect
import time
from collections.abc import Awaitable

import anyio

from inf_middleware.call.admission import count_input, prompts_of, reserved_output
from inf_middleware.call.bill import NO_ANSWER, event_of
from inf_middleware.call.deferred import deferred
from inf_middleware.call.handed import handed_usage
from inf_middleware.call.record import Billing, Call, log
from inf_middleware.domain.errors import BillKept, LedgerUnavailable, LimitsUnavailable
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.usage import Usage
from inf_middleware.wire.reader import AnswerReader

# Between two tries of a ledger that failed: short against `settle_timeout_s`, long for a disk.
_RETRY_S = 0.05

# RFC 9110, section 15.3.5.
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
        usage = _beyond(usage, call.billed, is_rest=_is_rest(call, usage))
    call.usage = usage
    reader = call.reader
    if isinstance(reader, AnswerReader) and (reader.deferred or _goes_on(call, reader)):
        reader.deferred = True
        await count_input(call)  # while its body is there: the answer may tell no usage
        deferred.note(call)
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
        call.recorded = isinstance(failure, BillKept) or await _retry(billing, call.event, failure)
    call.settled = True
    return call.recorded or billing is None


def _goes_on(call: Call, reader: AnswerReader) -> bool:
    """Tell whether a stream was cut whose answer is made on, to be fetched later."""
    background = call.request is not None and call.request.background
    return background and call.is_stream and reader.usage is None and not reader.failed


async def _without_prompts(call: Call, texts: list[str]) -> list[str]:
    """Return the texts of an answer without the prompts that they begin with: these are input."""
    prompts = sorted(await prompts_of(call), key=len, reverse=True)

    def without(text: str) -> str:
        return text[len(next(filter(text.startswith, prompts), "")) :]

    return [without(text) for text in texts]


def _is_rest(call: Call, usage: Usage) -> bool:
    """Tell whether a usage is of events alone of which nothing was billed before."""
    if not call.is_stream or usage.basis == "reported" or not isinstance(call.reader, AnswerReader):
        return False
    return call.reader.outline is not None and call.reader.outline.first_number >= 0


def _beyond(usage: Usage, billed: Usage, *, is_rest: bool) -> Usage:
    """Return what of a usage is not billed yet."""
    inputs = max(usage.input_tokens - billed.input_tokens, 0)
    outputs = usage.output_tokens
    if not is_rest:
        outputs = max(outputs - billed.output_tokens, 0)
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
        except BillKept:
            return True
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
    if call.status is None or call.status >= NO_ANSWER or call.status == _NO_CONTENT:
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
        texts = reader.texts()
        if call.request is not None and call.request.echo:
            # Where a text is cut in two it may be of a token more, or of one less.
            texts, exact = await _without_prompts(call, texts), False
        count = await call.metering.counters.of(call.model).count(texts)
        beyond = reader.text_overflow_bytes // _BYTES_PER_TOKEN
        if reader.unread_bytes and call.request is not None:
            # It may be anything: no more than what was reserved for it.
            beyond += min(reader.unread_bytes // _BYTES_PER_TOKEN, reserved_output(call))
        outputs = count.tokens + beyond
        exact = exact and count.exact and not beyond
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
