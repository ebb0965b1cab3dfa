"""What holds while the shared store is away, by the operator's choice, and how it comes back.

Every admission by the shared store is noted in a local one too, unenforced, so that an outage
begins from what this process admitted in the last minute. While the store is away nothing is asked
of it but a probe; what is settled meanwhile is owed, and made up when it is back.
"""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Generator, Sequence
from typing import Any, Literal, TypeAlias

from msgspec.structs import replace

from inf_middleware.background import Background
from inf_middleware.domain.errors import LimitsUnavailable
from inf_middleware.domain.limits import (
    Admission,
    Ask,
    GroupReading,
    Held,
    Refusal,
    Standing,
    Standings,
)
from inf_middleware.domain.rates import LimitGroup
from inf_middleware.ports import LocalStore, SharedStore
from inf_middleware.stores.share import share_of

_log = logging.getLogger("inf_middleware.limits")

OutagePolicy: TypeAlias = Literal["local", "refuse", "admit"]

# Between two probes of a store that is away: the first comes at once, so that one lost packet
# costs a moment; a second is soon for people and nothing for a server.
PROBE_FIRST_S = 0.05
PROBE_S = 1.0

# So long after an outage others may still have to tell that they live, each with its next renewal:
# who comes back first sees only itself.
COUNTED_ANEW_S = 60.0

# Settlements owed to a store that is away, about 1 KB each. Beyond, the oldest are given up: their
# leases end by themselves, with what they were known to have used.
OWED_MAX = 10_000

# So many of them are made up at once: what a store takes together it takes in one round trip, and
# who is asked for meanwhile does not wait behind all.
TOGETHER = 100


class OutageStore:
    """Decides by the shared store, and by `policy` while that is away.

    "local": this process alone, with its share of each limit (by the processes seen last, rounded
    up, at least 1); "refuse": nobody is admitted; "admit": everybody. `outages` counts how often
    the store went away, `is_away` tells whether it is.
    """

    def __init__(self, shared: SharedStore, local: LocalStore, *, policy: OutagePolicy) -> None:
        self.is_away = False
        self.outages = 0
        self._shared = shared
        self._local = local
        self._policy = policy
        self._workers = 1  # seen before it went away: then each sees only itself
        self._known: set[str] = set()  # calls that the shared store knows of, or may
        self._alone: dict[str, Ask] = {}  # admitted without it, and still running
        self._held: Sequence[Held] = ()  # as last renewed
        self._owed: OrderedDict[str, tuple[Admission, int | None]] = OrderedDict()
        self._dropped = 0
        self._since = 0.0  # it went away last
        self._back = -COUNTED_ANEW_S  # it came back last
        self._probing = Background()

    async def admit(self, ask: Ask) -> Admission | Refusal:
        """Take a slot, a request and a reservation of tokens: all, or nothing at all.

        Raises:
            LimitsUnavailable: The store is away, and the policy refuses.
        """
        # Asked for again, what was to be given back is wanted after all, or owed anew.
        if self._owed:
            self._owed.pop(ask.call_id, None)
        if self.is_away:
            return self._without(ask)
        try:
            told = await self._shared.ask(ask)
        except LimitsUnavailable as error:
            # It may have been taken all the same: then it is settled as every other.
            self._known.add(ask.call_id)
            self._fell(error)
            if self._policy == "refuse":
                self._owe_back(ask)
                raise
            return self._without(ask)
        answer = self._shared.answer(ask, told)
        if isinstance(answer, Admission):
            self._known.add(ask.call_id)
            if isinstance(self._local.admit_now(ask), Refusal):  # here others may have left later
                self._local.admit_now(replace(ask, enforce=False))
        else:
            self._known.discard(ask.call_id)  # it has nothing of an earlier time, either
        return answer

    async def read(self, account_id: str, groups: Sequence[LimitGroup]) -> Sequence[GroupReading]:
        """Return how groups of an account's limits stand: here, while the shared store is away."""
        if not self.is_away:
            try:
                return await self._shared.read(account_id, groups)
            except LimitsUnavailable as error:
                self._fell(error)
        return await self._local.read(account_id, groups)

    async def renew(self, held: Sequence[Held]) -> frozenset[str]:
        """Lengthen the leases of running calls; return the ids of those that were lost."""
        await self._local.renew(held)
        self._held = held = [one for one in held if one.admission.call_id in self._known]
        if self.is_away:
            return frozenset()
        try:
            return await self._shared.renew(held)
        except LimitsUnavailable as error:
            self._fell(error)
            return frozenset()

    def settle(self, admission: Admission, tokens: int | None) -> Awaitable[None]:
        """Settle with both, at once; what the shared store does not take now is owed to it."""
        call_id = admission.ask.call_id
        self._local.settle_now(admission, tokens)
        self._alone.pop(call_id, None)
        if call_id not in self._known:
            return _NOTHING
        if self.is_away:
            self._owe(admission, tokens)
            return _NOTHING
        return _Settling(self, admission, tokens, self._shared.settle(admission, tokens))

    def settled(self, call_id: str) -> None:
        """Note that the shared store has taken a settlement."""
        self._known.discard(call_id)

    def failed(self, admission: Admission, tokens: int | None, error: LimitsUnavailable) -> None:
        """Note that the shared store has not taken a settlement."""
        self._owe(admission, tokens)
        self._fell(error)

    async def aclose(self) -> None:
        """Stop probing, and let go of connections."""
        await self._probing.end()
        await self._shared.aclose()

    def _without(self, ask: Ask) -> Admission | Refusal:
        self._probe()
        if self._policy == "refuse":
            self._owe_back(ask)
            raise LimitsUnavailable("the limits' storage is away")
        if self._policy == "local":
            answer = self._local.admit_now(share_of(ask, self._workers))
        else:
            answer = self._local.admit_now(replace(ask, enforce=False))
        if isinstance(answer, Admission):
            self._alone[ask.call_id] = replace(ask, enforce=False)
            if self._policy == "admit":
                answer = replace(answer, would_refuse=None)
        else:
            self._owe_back(ask)
        return answer

    def _owe_back(self, ask: Ask) -> None:
        """Owe what the shared store may have taken for a call that is not admitted."""
        if ask.call_id in self._known:
            self._owe(Admission(ask, _UNKNOWN), 0)

    def _fell(self, error: LimitsUnavailable) -> None:
        if self.is_away:
            return
        self.is_away = True
        self.outages += 1
        self._since = time.monotonic()
        were = self._workers if self._since - self._back < COUNTED_ANEW_S else 1
        self._workers = max(self._shared.workers, were)
        _log.error("%s; until it is back: %s", error, _MEANINGS[self._policy])
        self._probe()

    def _probe(self) -> None:
        # Once more where the event loop that did has ended meanwhile.
        if not self._probing.is_running:
            self._probing.start(self._probe_until_back, "inf-middleware-limits-probe")

    async def _probe_until_back(self) -> None:
        while self.is_away:
            made_up = await self._until_back()
            self.is_away = False
            self._back = time.monotonic()
            dropped, self._dropped = self._dropped, 0
            _log.warning(
                "the limits' storage is back after %.1f s; %d settlements were made up%s",
                time.monotonic() - self._since,
                made_up,
                f", {dropped} more were given up: their leases end by themselves"
                if dropped
                else "",
            )
            try:
                await self._make_up()
            except LimitsUnavailable as error:
                self._fell(error)

    async def _until_back(self) -> int:
        wait_s = PROBE_FIRST_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = PROBE_S
            try:
                await self._shared.ping()
                return await self._make_up()
            except LimitsUnavailable:
                continue

    async def _make_up(self) -> int:
        """Tell the shared store what happened without it until now; return how much was settled.

        Not what comes while it does: from a busy process that might never end. Once everybody is
        asked again nothing more comes, and a second time tells the rest.
        """
        await self._shared.renew(
            [one for one in self._held if one.admission.call_id in self._known]
        )
        # What runs without its knowledge is told it, so that it counts from now on.
        for call_id, ask in list(self._alone.items()):
            if call_id in self._alone:
                self._known.add(call_id)
                await self._shared.admit(ask)
                self._alone.pop(call_id, None)
        owed = list(self._owed)
        made_up = 0
        for start in range(0, len(owed), TOGETHER):
            settling = map(self._settle_owed, owed[start : start + TOGETHER])
            settled = await asyncio.gather(*settling, return_exceptions=True)
            for one in settled:
                if isinstance(one, BaseException):
                    raise one
                made_up += one
        return made_up

    async def _settle_owed(self, call_id: str) -> bool:
        owed = self._owed.get(call_id)
        if owed is None:
            return False
        await self._shared.settle(*owed)
        # Where it was asked for again meanwhile, it is known by that.
        if self._owed.pop(call_id, None) is not None:
            self._known.discard(call_id)
        return True

    def _owe(self, admission: Admission, tokens: int | None) -> None:
        self._owed[admission.call_id] = (admission, tokens)
        if len(self._owed) > OWED_MAX:
            call_id, _ = self._owed.popitem(last=False)
            self._known.discard(call_id)
            self._dropped += 1


class _Settling(Awaitable[None]):
    """Waits until the shared store has taken a settlement.

    It has been asked already, and nothing has to wait at the same moment: no task is made.
    """

    __slots__ = ("_admission", "_asked", "_store", "_tokens")

    def __init__(
        self,
        store: OutageStore,
        admission: Admission,
        tokens: int | None,
        asked: Awaitable[object],
    ) -> None:
        self._store = store
        self._admission = admission
        self._tokens = tokens
        self._asked = asked

    def __await__(self) -> Generator[Any, Any, None]:
        try:
            yield from self._asked.__await__()
        except LimitsUnavailable as error:
            self._store.failed(self._admission, self._tokens, error)
        else:
            self._store.settled(self._admission.ask.call_id)


class _Nothing(Awaitable[None]):
    """Nothing is to be waited for."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from ()


_NOTHING = _Nothing()

# Of a request whose admission got no answer: only its ask matters for what is owed.
_UNKNOWN = Standings(*[Standing(0, 0, 0.0)] * 3)

_MEANINGS: dict[OutagePolicy, str] = {
    "local": "this process goes on alone, with its share of each limit",
    "refuse": "requests are refused with 503",
    "admit": "requests are admitted without limits",
}
