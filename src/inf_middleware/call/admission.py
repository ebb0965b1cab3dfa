"""Admission: how much a call asks for, and the store's answer."""

from fnmatch import fnmatchcase

from inf_middleware.call.record import Call, Limiting
from inf_middleware.call.refuse import Refuse
from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Refusal
from inf_middleware.domain.tiers import Tier
from inf_middleware.tokens.chat import model_input
from inf_middleware.wire import answers
from inf_middleware.wire.dialect import Input

# Where no pattern of the operator's fits: the default of the option.
ASSUMED_OUTPUT_TOKENS = 1024


async def admit(call: Call, limiting: Limiting) -> None:
    """Take a slot, a request and a reservation of tokens for a call, or refuse it.

    Raises:
        Refuse: It is over a limit (429), can never fit (400), or the store failed (503).
    """
    assert call.account is not None
    assert call.tier is not None
    tokens = await _reservation(call, call.tier)
    try:
        answer = await limiting.store.admit(call.id, call.account.id, call.tier, tokens)
    except LimitsUnavailable as error:
        raise Refuse(
            503,
            "limits_unavailable",
            "The limits cannot be checked just now; try again shortly.",
            headers=answers.retry_headers(1.0),
        ) from error
    if isinstance(answer, Refusal):
        raise Refuse(
            429,
            answer.code,
            answers.limit_message(call.tier.name, answer),
            headers=[
                *answers.retry_headers(answer.retry_after_s),
                *call.limit_headers(answer.standings),
            ],
        )
    call.limiting = limiting
    call.admission = answer


async def count_input(call: Call) -> int:
    """Count the call's input tokens, once; 0 where the dialect has no text to count."""
    if call.input_tokens is None:
        texts, overhead = _input_of(call)
        count = await call.metering.counters.of(call.model).count(texts)
        call.input_tokens = count.tokens + overhead
        call.input_exact = count.exact
    return call.input_tokens


async def _reservation(call: Call, tier: Tier) -> int:
    request = call.request
    if request is None:
        return 0  # nothing is known before the answer; what it used is recorded at settlement
    tokens_max = tier.tokens_max
    texts, overhead = _input_of(call)
    # Characters are at most bytes, so this bound holds, and spares counting what cannot fit.
    fewest = call.metering.counters.of(call.model).bounds(sum(map(len, texts)))[0] + overhead
    tokens = fewest if fewest > tokens_max else await count_input(call)
    if tokens > tokens_max:
        raise Refuse(
            400,
            "tokens_exceed_tier_limit",
            f"The input has {'at least ' if tokens == fewest else ''}{tokens:,} tokens, and level"
            f" {tier.name} allows {tier.tokens_max:,} tokens at once: it can never be admitted."
            " Shorten the input, or raise the level.",
            param="messages",
        )
    found = call.parts.prices.find(request.model)
    left = None
    if found is not None and found.price.context is not None:
        left = max(found.price.context - tokens, 0)
    return min(tokens + reserved_output(call, left), tokens_max)


def reserved_output(call: Call, output_max: int | None = None) -> int:
    """Return how many tokens of output to reckon with: declared or assumed, of all candidates.

    `output_max` bounds those of one candidate.
    """
    request = call.request
    if request is None or not call.dialect.generates:
        return 0
    name = call.model or ""
    output = request.output_cap
    if output is None:
        assumed = call.metering.assumed_output_tokens.items()
        fitting = (tokens for pattern, tokens in assumed if fnmatchcase(name, pattern))
        output = next(fitting, ASSUMED_OUTPUT_TOKENS)
    return request.candidates * (output if output_max is None else min(output, output_max))


def _input_of(call: Call) -> tuple[list[str], int]:
    if call.input_texts is None:
        given = call.dialect.input_of(call.body) if call.body else Input()
        profile = call.metering.counters.profile_of(call.model)
        call.input_texts = model_input(*given, profile)
    return call.input_texts
