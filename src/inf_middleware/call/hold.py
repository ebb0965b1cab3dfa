"""Prepaid calls: money is held before the app works, and more of it while a stream runs.

A JSON answer is held for whole: input and all output it may have. A stream is held for its input
and one slice of output, and extended by a slice each time that half of the last one is used: it
waits only when nothing is left.
"""

import asyncio

from inf_middleware.call.admission import count_input, reserved_output
from inf_middleware.call.bill import event_of, price_of
from inf_middleware.call.record import Billing, Call, log
from inf_middleware.call.refuse import Refuse
from inf_middleware.call.settle import release
from inf_middleware.domain.errors import LedgerUnavailable
from inf_middleware.domain.money import AMOUNT_NANO_MAX, decimal_string
from inf_middleware.domain.prices import Price
from inf_middleware.domain.usage import Usage
from inf_middleware.ports import Holds
from inf_middleware.wire import answers
from inf_middleware.wire.reader import AnswerReader

# Output tokens that are held at a time: some seconds of a stream, so that one ledger commit pays
# for many tokens, and the most that a killed worker gives away.
SLICE_TOKENS = 256

# Where this many times what a call needs is there, its input is held for by the bound that it was
# admitted with, which may be four times of what it has, and is not counted before the app works:
# that would be a fifth of what is done for a call. So many at once, twice the concurrency of the
# highest level, take nothing from one another; who has less pays for what was counted alone.
PLENTY = 100

# Where all output there may be is held for: more bytes than any answer has.
_NO_END = 2**62

# Of input that cannot be counted only the bytes are known; English and code run near this.
_BYTES_PER_TOKEN = 4

# How far a stream may be counted to go beyond its cap before it is taken to keep to none: an
# encoding that is not the model's own was seen to count 22 % too much, and one token of another
# may be several of it.
_BEYOND_PART = 4
_BEYOND_TOKENS = 32


async def take_hold(call: Call) -> None:
    """Hold money for a call, durably, or refuse it.

    Raises:
        Refuse: The balance does not cover it (402), or the ledger could not decide (503).
    """
    billing, holds = call.billing, call.billing.holds if call.billing else None
    if billing is None or holds is None or call.hold is not None:
        return
    found = price_of(call, billing)
    if found is None:
        return
    hold = Hold(call, billing, holds, found.price)
    await hold.reckon()
    if not hold.amount_nano:
        return
    call.hold = hold  # before it is there: whatever happens from here on, it has to be ended
    try:
        available = await hold.take()
    except LedgerUnavailable as error:
        call.hold = None
        if billing.spool is not None:
            return  # served on credit: the bill will be kept, and ends what may have been held
        billing.lost.remember(call.id)  # it may have been held all the same
        await release(call, 0)
        raise Refuse(
            503,
            "ledger_unavailable",
            "The balance cannot be checked just now; try again shortly.",
            headers=answers.retry_headers(1.0),
        ) from error
    if available is None:
        return
    call.hold = None
    await release(call, 0)
    currency = call.price_list.currency
    raise Refuse(
        402,
        "insufficient_balance",
        f"The balance does not cover this request: {decimal_string(available)} {currency} are"
        f" available, and {decimal_string(hold.amount_nano)} {currency} are needed.",
    )


def refuse_background(call: Call, billing: Billing) -> None:
    """Refuse what is made later, where it has to be paid first.

    Its hold could end only with a fetch that may never come, and the money of the next call with
    it; without a hold what nobody fetches would be free.

    Raises:
        Refuse: The call is prepaid, costs something, and is to be answered in the background (400).
    """
    if call.request is None or not call.request.background:
        return
    found = price_of(call, billing)
    if found is not None and (found.price.input_nano or found.price.output_nano):
        raise Refuse(
            400,
            "unsupported_parameter",
            "Responses in the background cannot be paid in advance, for nobody knows when they are"
            " fetched; leave `background` out, and stream the response where it takes long.",
            param="background",
        )


async def _input_of(call: Call) -> int:
    if call.dialect.has_text:
        return await count_input(call)
    return len(call.body or b"") // _BYTES_PER_TOKEN


def _bound_of(call: Call) -> int | None:
    """Return the most tokens that a call's input can have; None where it is, or has to be, counted.

    What would have been refused may have been admitted with less than its bound.
    """
    if call.input_tokens is not None or call.would_refuse is not None:
        return None
    return call.input_reserved if call.dialect.has_text else None


class Hold:
    """What one call holds; a stream asks it before each piece whether it is covered."""

    def __init__(self, call: Call, billing: Billing, holds: Holds, price: Price) -> None:
        self.amount_nano = 0
        self.room = 0
        self._call = call
        self._billing = billing
        self._holds = holds
        self._price = price
        self._bound: int | None = None
        most = reserved_output(call)
        stream = call.request is not None and call.request.stream
        self._held = min(SLICE_TOKENS, most) if stream else most
        if stream and call.request is not None and call.request.output_cap is None:
            most = _NO_END  # what is assumed binds no server
        self._most = most  # what all output together may come to
        self._extending: asyncio.Task[bool] | None = None
        self._short = False  # more was not to be had: it is tried again when nothing is left
        self._exact = 0  # tokens that were counted, in so many characters of each choice
        self._counted: list[int] = []
        self._characters = 0

    async def reckon(self) -> None:
        """Find what is needed at first."""
        self._bound = _bound_of(self._call)
        self._need(await _input_of(self._call) if self._bound is None else self._bound)

    async def take(self) -> int | None:
        """Hold what is needed at first; return None, or what is available where that is less."""
        account = self._call.account
        assert account is not None
        credit_nano = account.credit_limit_nano
        event = event_of(self._call, self._billing, Usage(basis="counted"), "worker_lost")
        if self._bound is not None:
            spare_nano = min((PLENTY - 1) * self.amount_nano, AMOUNT_NANO_MAX - self.amount_nano)
            if await self._holds.hold(event, self.amount_nano, credit_nano, spare_nano) is None:
                return None
            self._need(await _input_of(self._call))
        return await self._holds.hold(event, self.amount_nano, credit_nano)

    def _need(self, input_tokens: int) -> None:
        needed = input_tokens * self._price.input_nano + self._cost(self._held)
        self.amount_nano = min(needed, AMOUNT_NANO_MAX)  # which nobody has

    async def covers(self, reader: AnswerReader) -> bool:
        """Tell whether the output so far is paid for and more may follow, holding more if need be.

        It waits only when nothing is left of what is held.
        """
        if self._extending is not None and self._extending.done():
            self._short = not self._extending.result()
            self._extending = None
        # A token has at least one character, nearly always: counting begins where that is too much.
        unseen = reader.text_characters - self._characters
        produced = max(reader.output_so_far, self._exact + unseen // self._room_per_token)
        if produced > self._enough:
            produced = await self._count(reader)
            if produced > self._enough:
                if self._held >= self._most:
                    self._most = _NO_END  # its server does not keep to the cap
                if self._extending is None and not self._short:
                    self._extending = asyncio.create_task(self._extend(produced))
        while self._held <= produced and self._held < self._most:
            if self._extending is None:
                self._extending = asyncio.create_task(self._extend(produced))
            extended = await asyncio.shield(self._extending)
            self._extending = None
            if not extended:
                return False
        self.room = (self._enough - produced) * self._room_per_token
        return True

    @property
    def _enough(self) -> int:
        """The tokens that may be made before there is something to do.

        Half of the last slice; all but one where more is on its way, or was not to be had. Where
        all is held that the cap allows, as far beyond as it may be miscounted.
        """
        if self._held >= self._most:
            return self._most + max(self._most // _BEYOND_PART, _BEYOND_TOKENS)
        waits = self._extending is not None or self._short
        return self._held - (1 if waits else SLICE_TOKENS // 2)

    @property
    def _room_per_token(self) -> int:
        """The bytes of text that are reckoned a token: the fewest; where all is held as usual."""
        return _BYTES_PER_TOKEN if self._held >= self._most else 1

    async def settled(self) -> None:
        """Let what is still under way end, so that a settlement is the last word.

        Where bills are kept, no longer than for a settlement: one that is kept ends later whatever
        is held by then.
        """
        if self._extending is not None:
            billing = self._billing
            timeout_s = None if billing.spool is None else billing.settle_timeout_s
            await asyncio.wait([self._extending], timeout=timeout_s)
            self._extending = None

    async def _count(self, reader: AnswerReader) -> int:
        if reader.tells_output and reader.usage is not None:
            return reader.usage.output_tokens
        texts = reader.texts()
        self._counted += [0] * (len(texts) - len(self._counted))
        tails = [text[seen:] for text, seen in zip(texts, self._counted, strict=True)]
        count = await self._call.metering.counters.of(self._call.model).count(tails)
        self._counted = [len(text) for text in texts]
        self._characters = reader.text_characters
        self._exact += count.tokens
        return max(self._exact, reader.output_so_far)

    async def _extend(self, produced: int) -> bool:
        """Hold one more slice, or what was made beyond, as far as the balance covers it.

        False for nothing.
        """
        tokens = min(max(SLICE_TOKENS, produced - self._held), self._most - self._held)
        event = event_of(
            self._call,
            self._billing,
            Usage(await _input_of(self._call), produced, basis="counted"),
            "worker_lost",
        )
        try:
            available = await self._holds.extend(event, self._cost(tokens))
            if available is not None:
                tokens = available // max(self._price.output_nano, 1)
                if not tokens or await self._holds.extend(event, self._cost(tokens)) is not None:
                    return False
        except LedgerUnavailable as error:
            if self._billing.spool is None:
                log.warning("call %s: its hold could not be extended: %s", self._call.id, error)
                return False
            self._held = self._most  # served on credit: the bill will be kept
            return True
        self._held += tokens
        return True

    def _cost(self, tokens: int) -> int:
        return tokens * self._price.output_nano
