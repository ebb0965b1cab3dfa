"""Admission: how much a call asks for, and the store's answer."""

from functools import partial

from inf_middleware.call.ahead import Ahead
from inf_middleware.call.record import Call, Limiting
from inf_middleware.call.refuse import Refuse
from inf_middleware.call.waiting import Full
from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Ask, Refusal
from inf_middleware.domain.rates import tokens_max
from inf_middleware.tokens.chat import chat_input
from inf_middleware.wire import answers

# What waiting this long does not cure, SDKs shall not wait for: some would sleep for an hour, some
# ignore the time and hammer (design: "What the caller sees").
RETRY_AFTER_S_MAX = 60.0

# When a process that is full, or a store that is away, is worth another try.
_RETRY_S = 1.0


async def admit(call: Call, limiting: Limiting, ahead: Ahead) -> None:
    """Take a place, a slot, a request and a reservation of tokens for a call, or refuse it.

    Raises:
        Refuse: It is over a limit (429), can never fit (400), this process is full or the store
            failed (503).
        ClientGone: The client left while it waited.
    """
    assert call.account is not None
    assert call.tier is not None
    groups = call.tier.groups_for(call.model)
    tokens = await _reservation(call, tokens_max(groups), enforce=limiting.enforce)
    ask = Ask(call.id, call.account.id, groups, tokens, limiting.enforce)
    if limiting.enforce:
        await _admit_in_turn(call, ask, limiting, ahead)
    else:
        await _admit_anyway(call, ask, limiting)


async def _admit_in_turn(call: Call, ask: Ask, limiting: Limiting, ahead: Ahead) -> None:
    assert call.tier is not None
    try:
        answer = await limiting.waiting.admit(
            ask.account_id, partial(limiting.store.admit, ask), ahead
        )
    except Full:
        raise Refuse(
            503,
            "server_busy",
            "This server has as many requests in progress as it takes; try again shortly.",
            headers=answers.retry_headers(_RETRY_S),
        ) from None
    except LimitsUnavailable as error:
        raise Refuse(
            503,
            "limits_unavailable",
            "The limits cannot be checked just now; try again shortly.",
            headers=answers.retry_headers(_RETRY_S),
        ) from error
    if isinstance(answer, Refusal):
        raise Refuse(
            429,
            answer.code,
            answers.limit_message(call.tier.name, answer),
            headers=[
                *answers.retry_headers(answer.retry_after_s),
                *answers.limit_headers(answer.standings),
            ],
            should_retry=answer.retry_after_s <= RETRY_AFTER_S_MAX,
        )
    call.limiting = limiting
    call.admission = answer
    limiting.leases.hold(call)


async def _admit_anyway(call: Call, ask: Ask, limiting: Limiting) -> None:
    """Take what is asked for, and mark the call with what would have refused it."""
    try:
        answer = await limiting.store.admit(ask)
    except LimitsUnavailable:
        call.would_refuse = call.would_refuse or "limits_unavailable"
        return
    assert not isinstance(answer, Refusal), "a store refused what is not enforced"
    if answer.would_refuse is not None:
        call.would_refuse = call.would_refuse or answer.would_refuse.code
    if not limiting.waiting.places.try_take():
        limiting.waiting.places.take_anyway()
        call.would_refuse = call.would_refuse or "server_busy"
    call.limiting = limiting
    call.admission = answer
    limiting.leases.hold(call)


async def count_input(call: Call) -> int:
    """Count the call's input tokens, once; 0 where the dialect has no text to count."""
    if call.input_tokens is None:
        texts, overhead = _input_of(call)
        count = await call.metering.counter.count(texts)
        call.input_tokens = count.tokens + overhead
        call.input_exact = count.exact
    return call.input_tokens


async def _reservation(call: Call, most: int, *, enforce: bool) -> int:
    request = call.request
    if request is None:
        return 0  # nothing is known before the answer; what it used is recorded at settlement
    texts, overhead = _input_of(call)
    # Characters are at most bytes, so this bound holds, and spares counting what cannot fit.
    fewest = call.metering.counter.bounds(sum(map(len, texts)))[0] + overhead
    tokens = fewest if fewest > most else await count_input(call)
    if tokens > most:
        if not enforce:
            call.would_refuse = "tokens_exceed_tier_limit"
            return most
        raise _never_fits(call, tokens, most, exact=tokens != fewest)
    output = request.output_cap or call.metering.assumed_output_tokens
    found = call.parts.prices.find(request.model)
    if found is not None and found.price.context is not None:
        output = min(output, max(found.price.context - tokens, 0))
    return min(tokens + request.choices * output, most)


def _never_fits(call: Call, tokens: int, most: int, *, exact: bool) -> Refuse:
    assert call.tier is not None
    return Refuse(
        400,
        "tokens_exceed_tier_limit",
        f"The input has {'' if exact else 'at least '}{tokens:,} tokens, and level"
        f" {call.tier.name} allows {most:,} tokens at once: it can never be admitted."
        " Shorten the input, or raise the level.",
        param="messages",
    )


def _input_of(call: Call) -> tuple[list[str], int]:
    if call.input_texts is None:
        fields = call.dialect.input_fields(call.body) if call.body else {}
        call.input_texts = chat_input(**fields) if fields else ([], 0)
    return call.input_texts
