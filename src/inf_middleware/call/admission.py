"""Admission: how much a call asks for, and the store's answer."""

from fnmatch import fnmatchcase
from typing import NamedTuple

from inf_middleware.call.ahead import Ahead
from inf_middleware.call.record import Call, Limiting
from inf_middleware.call.refuse import Refuse
from inf_middleware.call.waiting import Full
from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Admission, Ask, Refusal
from inf_middleware.tokens.chat import Profile, bytes_bound, model_input
from inf_middleware.tokens.counting import INLINE_BYTES_MAX, in_thread, utf8_bytes
from inf_middleware.wire import answers
from inf_middleware.wire.dialect import Dialect, Input

# Where no pattern of the operator's fits: the default of the option.
ASSUMED_OUTPUT_TOKENS = 1024

# What waiting this long does not cure, SDKs shall not wait for: some would sleep for an hour, some
# ignore the time and hammer (design: "What the caller sees").
RETRY_AFTER_S_MAX = 60.0

# When a process that is full, or a store that is away, is worth another try.
_RETRY_S = 1.0


# The texts of larger bodies are taken out in a thread: that takes 1 to 3 ms of 130 KB, and up to
# 70 ms of 4 MB, during which nobody else would be served.
INLINE_BODY_BYTES_MAX = 32 * 1024


# Below it a request is counted before it is admitted: in some 20 us, texts taken out and all. One
# of 1 KB takes three times that, more than everything else that is done for a call.
COUNTED_BODY_BYTES_MAX = 512


def try_admit(call: Call, limiting: Limiting) -> bool:
    """Admit a call that need not wait, as nearly all, where the store is of this process.

    False where `admit` has to be asked.
    """
    local, waiting = limiting.local, limiting.waiting
    if local is None or not limiting.enforce:
        return False
    ask = _ask_of(call, limiting)
    if not waiting.try_place(ask.account_id):
        return False
    try:
        answer = local.admit_now(ask)
    except BaseException:
        waiting.places.give()
        raise
    if isinstance(answer, Refusal):
        waiting.places.give()
        return False  # in its turn it is asked again, and refused or made to wait
    call.limiting = limiting
    call.admission = answer
    limiting.leases.hold(call)
    return True


class InTurn(NamedTuple):
    """A call has to wait for its turn, if it may; `refusal` is what it was given, if it asked."""

    refusal: Refusal | None


async def admit(call: Call, limiting: Limiting) -> InTurn | None:
    """Take a place, a slot, a request and a reservation of tokens for a call.

    What is returned is for `admit_in_turn`; None: it is admitted.

    Raises:
        Refuse: The store failed (503).
    """
    ask = _ask_of(call, limiting)
    if not limiting.enforce:
        await _admit_anyway(call, ask, limiting)
        return None
    waiting = limiting.waiting
    if not waiting.try_place(ask.account_id):
        return InTurn(None)
    answer: Admission | Refusal | None = None
    try:
        answer = await limiting.store.admit(ask)
        if isinstance(answer, Refusal):
            answer = await _by_what_it_has(call, ask, answer, limiting)
    except LimitsUnavailable as error:
        raise _unavailable() from error
    finally:
        if not isinstance(answer, Admission):
            waiting.places.give()
    if isinstance(answer, Refusal):
        return InTurn(answer)
    _take(call, limiting, answer)
    return None


def _ask_of(call: Call, limiting: Limiting) -> Ask:
    assert call.account is not None
    assert call.tier is not None
    limits = call.tier.limits_for(call.model)
    # Without a request nothing is known before the answer; it is recorded at settlement.
    inputs = call.input_reserved or 0
    left = None if call.found is None else call.found.price.context
    if left is not None:
        left = left - inputs if left > inputs else 0
    tokens = inputs + reserved_output(call, left)
    if tokens > limits.tokens_max:
        tokens = limits.tokens_max
    return Ask(call.id, call.account.id, limits.groups, tokens, limiting.enforce)


async def _by_what_it_has(
    call: Call, ask: Ask, refusal: Refusal, limiting: Limiting
) -> Admission | Refusal:
    """Ask again for a call that was refused by the bound of its input, if it has fewer tokens."""
    is_bound = call.input_reserved is not None and call.input_tokens is None
    if refusal.code != "tokens_limit_exceeded" or not is_bound:
        return refusal
    await count_input(call)
    call.input_reserved = None
    await reserve(call, limiting)
    exact = _ask_of(call, limiting)
    return refusal if exact.tokens >= ask.tokens else await limiting.store.admit(exact)


async def admit_in_turn(call: Call, limiting: Limiting, ahead: Ahead, turn: InTurn) -> None:
    """Admit a call that was refused, or that has no place yet, if it may wait for its turn.

    Raises:
        Refuse: It is over a limit (429), this process is full or the store failed (503).
        ClientGone: The client left while it waited.
    """
    assert call.account is not None
    assert call.tier is not None

    async def ask_again() -> Admission | Refusal:
        ask = _ask_of(call, limiting)
        answer = await limiting.store.admit(ask)
        if isinstance(answer, Refusal):
            answer = await _by_what_it_has(call, ask, answer, limiting)
        return answer

    try:
        answer = await limiting.waiting.admit(call.account.id, ask_again, ahead, turn.refusal)
    except Full:
        raise Refuse(
            503,
            "server_busy",
            "This server has as many requests in progress as it takes; try again shortly.",
            headers=answers.retry_headers(_RETRY_S),
        ) from None
    except LimitsUnavailable as error:
        raise _unavailable() from error
    if isinstance(answer, Refusal):
        raise Refuse(
            429,
            answer.code,
            answers.limit_message(call.tier.name, answer),
            headers=[
                *answers.retry_headers(answer.retry_after_s),
                *answers.limit_headers(answer.standings, call.dialect, call.parts.now_ns),
            ],
            should_retry=answer.retry_after_s <= RETRY_AFTER_S_MAX,
        )
    _take(call, limiting, answer)


def _unavailable() -> Refuse:
    return Refuse(
        503,
        "limits_unavailable",
        "The limits cannot be checked just now; try again shortly.",
        headers=answers.retry_headers(_RETRY_S),
    )


def _take(call: Call, limiting: Limiting, admission: Admission) -> None:
    call.limiting = limiting
    call.admission = admission
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
    _take(call, limiting, answer)


async def count_input(call: Call, *, flat: bool = True) -> int:
    """Count the call's input tokens, once; 0 where the dialect has no text to count.

    `flat`: with what is no text, which is estimated.
    """
    if call.input_tokens is None:
        texts, overhead = await _input_of(call)
        count = await call.metering.counters.of(call.model).count(texts)
        call.input_tokens = count.tokens + overhead
        call.input_exact = count.exact
    return call.input_tokens if flat else call.input_tokens - (await _input_of(call))[1]


def try_reserve(call: Call, limiting: Limiting) -> bool:
    """Reckon with a bound of the call's input, where that is as little as of nearly all.

    False where `reserve` has to look at it. A full house of such reservations leaves half
    of the level free: few are refused for it, and those are counted then.
    """
    body = call.body
    if call.request is None or call.input_reserved is not None:
        return True
    if body is None or call.input_tokens is not None or not limiting.enforce:
        return False
    assert call.tier is not None
    little = call.tier.limits_for(call.model).tokens_little
    messages, texts = call.dialect.messages, call.dialect.texts
    if not COUNTED_BODY_BYTES_MAX < len(body) <= little or not (messages or texts):
        return False
    counter, profile = call.metering.counters.found(call.model)
    if not counter.needs_bytes:
        return False
    bound = bytes_bound(body, profile, messages, texts)
    if bound is None or bound > little:
        return False
    call.input_reserved = bound
    return True


async def reserve(call: Call, limiting: Limiting) -> None:
    """Find how many tokens of input to reckon with, counted or bounded, where that is not known.

    Raises:
        Refuse: The level can never hold them (400).
    """
    assert call.tier is not None
    limits = call.tier.limits_for(call.model)
    level_max = limits.tokens_max
    texts, overhead = await _input_of(call)
    # The bounds spare counting what cannot fit, and what is so little that its bound will do.
    fewest, most = call.metering.counters.of(call.model).bounds(utf8_bytes(texts))
    fewest += overhead
    little = limits.tokens_little if limiting.enforce else 0
    if fewest > level_max:
        tokens = fewest
    elif most is not None and INLINE_BYTES_MAX < most <= little and call.input_tokens is None:
        tokens = most + overhead
    else:
        tokens = await count_input(call)
    if tokens > level_max:
        if limiting.enforce:
            raise _never_fits(call, tokens, level_max, exact=tokens != fewest)
        call.would_refuse = "tokens_exceed_tier_limit"
        tokens = level_max
    call.input_reserved = tokens


def _never_fits(call: Call, tokens: int, level_max: int, *, exact: bool) -> Refuse:
    assert call.tier is not None
    return Refuse(
        400,
        "tokens_exceed_tier_limit",
        f"The input has {'' if exact else 'at least '}{tokens:,} tokens, and level"
        f" {call.tier.name} allows {level_max:,} tokens at once: it can never be admitted."
        " Shorten the input, or raise the level.",
        param=call.dialect.input_name,
    )


def reserved_output(call: Call, output_max: int | None = None) -> int:
    """Return how many tokens of output to reckon with: declared or assumed, of all candidates.

    `output_max` bounds those of one candidate.
    """
    request = call.request
    if request is None or not call.dialect.generates:
        return 0
    output = request.output_cap
    if output is None:
        output = _assumed_output(call)
    if output_max is not None and output > output_max:
        output = output_max
    return request.candidates * output


def _assumed_output(call: Call) -> int:
    name = call.model or ""
    for pattern, tokens in call.metering.assumed_output_tokens.items():
        if pattern == "*" or fnmatchcase(name, pattern):
            return tokens
    return ASSUMED_OUTPUT_TOKENS


async def prompts_of(call: Call) -> list[str]:
    """Return the texts of a call's input, while its body is there."""
    return (await _input_of(call))[0]


async def _input_of(call: Call) -> tuple[list[str], int]:
    if call.input_texts is None:
        body = call.body or b""
        profile = call.metering.counters.profile_of(call.model)
        if len(body) <= INLINE_BODY_BYTES_MAX:
            call.input_texts = _texts_of(call.dialect, body, profile)
        else:
            call.input_texts = await in_thread(_texts_of, call.dialect, body, profile)
    return call.input_texts


def _texts_of(dialect: Dialect, body: bytes, profile: Profile) -> tuple[list[str], int]:
    return model_input(*(dialect.input_of(body) if body else Input()), profile)
