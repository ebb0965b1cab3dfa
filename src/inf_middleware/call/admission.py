"""Admission: how much a call asks for, and the store's answer."""

from fnmatch import fnmatchcase

from inf_middleware.call.ahead import Ahead
from inf_middleware.call.record import Call, Limiting
from inf_middleware.call.refuse import Refuse
from inf_middleware.call.waiting import Full
from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import Admission, Ask, Refusal
from inf_middleware.domain.rates import LimitGroup, tokens_max
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
    inputs = call.input_reserved
    if inputs is None:
        inputs = await input_to_reserve(call, limiting)
    tokens = _reservation(call, inputs, tokens_max(groups))
    ask = Ask(call.id, call.account.id, groups, tokens, limiting.enforce)
    if limiting.enforce and _is_admitted_here(call, ask, limiting):
        return
    if limiting.enforce:
        await _admit_in_turn(call, ask, limiting, ahead)
    else:
        await _admit_anyway(call, ask, limiting)


async def _admit_in_turn(call: Call, ask: Ask, limiting: Limiting, ahead: Ahead) -> None:
    assert call.tier is not None

    async def ask_store() -> Admission | Refusal:
        nonlocal ask
        answer = await limiting.store.admit(ask)
        if not _was_bound_refused(call, answer):
            return answer
        # Refused by a bound; by what it really has it may fit.
        await count_input(call)
        call.input_reserved = None
        inputs = await input_to_reserve(call, limiting)
        exact = _reservation(call, inputs, tokens_max(ask.groups))
        if exact >= ask.tokens:
            return answer
        ask = ask._replace(tokens=exact)
        return await limiting.store.admit(ask)

    try:
        answer = await limiting.waiting.admit(ask.account_id, ask_store, ahead)
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
                *call.limit_headers(answer.standings),
            ],
            should_retry=answer.retry_after_s <= RETRY_AFTER_S_MAX,
        )
    call.limiting = limiting
    call.admission = answer
    limiting.leases.hold(call)


def _is_admitted_here(call: Call, ask: Ask, limiting: Limiting) -> bool:
    """Admit a call that need not wait, as nearly all, where the store is of this process."""
    local, waiting = limiting.local, limiting.waiting
    if local is None or not waiting.try_place(ask.account_id):
        return False
    answer: Admission | Refusal | None = None
    try:
        answer = local.admit_now(ask)
    finally:
        if not isinstance(answer, Admission):
            waiting.places.give()
    if not isinstance(answer, Admission):
        return False  # in its turn it is asked again, and refused or made to wait
    call.limiting = limiting
    call.admission = answer
    limiting.leases.hold(call)
    return True


def _was_bound_refused(call: Call, answer: Admission | Refusal) -> bool:
    return (
        isinstance(answer, Refusal)
        and answer.code == "tokens_limit_exceeded"
        and call.input_reserved is not None
        and call.input_tokens is None
    )


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


async def input_to_reserve(call: Call, limiting: Limiting) -> int:
    """Return how many tokens of input to reckon with, counted or bounded; 0 where none is known.

    Raises:
        Refuse: The level can never hold them (400).
    """
    if call.request is None:
        return 0  # nothing is known before the answer; what it used is recorded at settlement
    if call.input_reserved is not None:
        return call.input_reserved
    assert call.tier is not None
    groups = call.tier.groups_for(call.model)
    level_max = tokens_max(groups)
    # A full house of such reservations leaves half of the level free: few are refused for it, and
    # those are counted then.
    little = level_max // (2 * _slots(groups)) if limiting.enforce else 0
    if call.input_tokens is None:
        bound = _bound_of_body(call, little)
        if bound is not None and bound <= little:
            call.input_reserved = bound
            return bound
    texts, overhead = await _input_of(call)
    # The bounds spare counting what cannot fit, and what is so little that its bound will do.
    fewest, most = call.metering.counters.of(call.model).bounds(utf8_bytes(texts))
    fewest += overhead
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
    return tokens


def _bound_of_body(call: Call, bytes_max: int) -> int | None:
    body = call.body
    if body is None or not COUNTED_BODY_BYTES_MAX < len(body) <= bytes_max:
        return None
    if not call.dialect.has_text:
        return None
    counters, dialect = call.metering.counters, call.dialect
    bound = bytes_bound(body, counters.profile_of(call.model), dialect.messages, dialect.texts)
    return None if bound is None else counters.of(call.model).bounds(bound)[1]


def _slots(groups: tuple[LimitGroup, ...]) -> int:
    for group in groups:
        if group.concurrency is not None:
            return group.concurrency
    raise AssertionError("every level limits concurrency")


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


def _reservation(call: Call, tokens: int, level_max: int) -> int:
    """Return how many tokens to ask for, with so many of input."""
    left = None
    if call.found is not None and call.found.price.context is not None:
        left = max(call.found.price.context - tokens, 0)
    return min(tokens + reserved_output(call, left), level_max)


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
