"""What users and adapters plug in: Protocols of few methods, and the records that cross them."""

from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol, runtime_checkable

from starlette.requests import HTTPConnection

from inf_middleware.domain.books import Claim, Claimed
from inf_middleware.domain.events import BillingEvent
from inf_middleware.domain.limits import Admission, Ask, GroupReading, Held, Refusal
from inf_middleware.domain.observations import RefusedCall, Sample, SettledCall, Timing
from inf_middleware.domain.rates import LimitGroup
from inf_middleware.domain.tiers import Account


class AccountLookup(Protocol):
    """From a key (None where the caller sent none) to its account."""

    async def __call__(self, key: str | None, connection: HTTPConnection) -> Account | None:
        """Return the account, or None where the key is unknown (answered with 401).

        Raising means that the look-up failed (answered with 503). An answer that was made without
        reading the connection is remembered for `accounts_ttl_s`, unless the object has an
        attribute `cacheable` that is False.
        """
        ...


@runtime_checkable
class KnownAccounts(Protocol):
    """A look-up that has accounts at hand: who is among them need not be asked for."""

    def known_by_digest(self, digest: bytes) -> Account | None:
        """Return the account of the key with this SHA-256; None where it has to be looked up."""
        ...


class TokenCounter(Protocol):
    """From a text to its number of tokens."""

    def __call__(self, text: str) -> int:
        """Count; must be safe to call from a thread, and never called with parts of a character."""
        ...


class Rejected(Exception):  # noqa: N818 - public name of the design
    """Raised by a sink: these events are refused for good, the others of the batch are taken.

    `reasons` maps event ids to why.
    """

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__(f"{len(reasons)} events rejected")
        self.reasons = dict(reasons)


class TryLater(Exception):  # noqa: N818 - says what to do, like `Rejected`
    """Raised by a sink that knows more than that it failed: a verdict on each event.

    `taken` are the ids it has taken and `rejected` those that it refuses for good, with why; the
    others are offered again, not before `after_s`. `not_taken` says that of those others this
    offer has certainly left none at the far end.
    """

    def __init__(
        self,
        message: str,
        *,
        after_s: float | None = None,
        taken: Collection[str] = (),
        rejected: Mapping[str, str] | None = None,
        not_taken: bool = False,
    ) -> None:
        super().__init__(message)
        self.after_s = after_s
        self.taken = frozenset(taken)
        self.rejected = dict(rejected or {})
        self.not_taken = not_taken


class Sink(Protocol):
    """Takes billing events; a plain async function is one.

    Two attributes are read where a sink has them: `dedupe_window_s`, for how long its far end
    knows an id again (an event whose outcome is unknown for longer is not sent blindly but set
    aside), and `aclose`, awaited when the server ends.
    """

    async def __call__(self, events: Sequence[BillingEvent], /) -> None:
        """Take a batch, in order.

        Delivery is at least once: the event's id is the key. Raise `Rejected` for events that are
        refused for good; anything else raised means that all are delivered again later.
        """
        ...


@runtime_checkable
class RecallingSink(Protocol):
    """A sink whose far end can be asked what it has, so that it can be held against the ledger.

    `forgets`: the far end keeps the latest events only.
    """

    forgets: bool

    def recall(self) -> AsyncIterator[Sequence[bytes]]:
        """Yield what the far end has, some events at a time, in their very bytes.

        Raises:
            OSError: It cannot be asked now.
        """
        ...


class LimitStore(Protocol):
    """Holds the counters of the limits and decides about admission in one atomic step."""

    async def admit(self, ask: Ask) -> Admission | Refusal:
        """Take a slot, a request and a reservation of tokens: all, or nothing at all.

        Asked again for the same call, it takes nothing more.

        Raises:
            LimitsUnavailable: The store could not decide.
        """
        ...

    async def renew(self, held: Sequence[Held]) -> frozenset[str]:
        """Lengthen the leases of running calls; return the ids of those that were lost.

        A lease that is not renewed in time ends with what its call is known to have used.

        Raises:
            LimitsUnavailable: The store could not renew; some may have been renewed.
        """
        ...

    def settle(self, admission: Admission, tokens: int | None) -> Awaitable[object]:
        """Put the tokens really used in the place of the reservation, and free the slot; once.

        None keeps the reservation as it is. A second settlement of one admission does nothing. The
        store may be asked at once; the awaitable ends when it has taken it.

        Raises:
            LimitsUnavailable: From the awaitable; the store did not take it.
        """
        ...

    async def aclose(self) -> None:
        """Let go of connections."""
        ...


@runtime_checkable
class ReadableStore(Protocol):
    """A store that tells how limits stand without taking anything."""

    async def read(self, account_id: str, groups: Sequence[LimitGroup]) -> Sequence[GroupReading]:
        """Return how groups of an account's limits stand now.

        Raises:
            LimitsUnavailable: The store could not tell.
        """
        ...


class SharedStore(LimitStore, ReadableStore, Protocol):
    """A store of many processes, which may be out of reach; `workers` were seen last."""

    workers: int

    def ask(self, ask: Ask) -> Awaitable[Sequence[int]]:
        """Do what `admit` does; what is told is read by `answer`.

        The store is asked at once.

        Raises:
            LimitsUnavailable: From the awaitable; the store could not decide.
        """
        ...

    def answer(self, ask: Ask, told: Sequence[int]) -> Admission | Refusal:
        """Read what was told to who asked."""
        ...

    async def ping(self) -> None:
        """See whether it answers.

        Raises:
            LimitsUnavailable: It does not.
        """
        ...


class LocalStore(LimitStore, ReadableStore, Protocol):
    """A store of one process, which is always there."""

    def admit_now(self, ask: Ask) -> Admission | Refusal:
        """Do what `admit` does, at once."""
        ...

    def settle_now(self, admission: Admission, tokens: int | None) -> None:
        """Do what `settle` does, at once."""
        ...


class Ledger(Protocol):
    """Keeps one record, its postings and one event per admitted request."""

    def settle(self, event: BillingEvent) -> Awaitable[None]:
        """Hand over a settlement at once; the awaitable ends when it is durable.

        Idempotent by the event's id.

        Raises:
            LedgerUnavailable: From the awaitable; nothing was recorded.
        """
        ...

    async def aclose(self) -> None:
        """Finish what was handed over, and close."""
        ...


@runtime_checkable
class Holds(Protocol):
    """Holds money for running calls; settling a call's event in the ledger ends its hold."""

    async def hold(
        self, event: BillingEvent, amount_nano: int, credit_limit_nano: int, spare_nano: int = 0
    ) -> int | None:
        """Hold an amount durably; return None, or what is available where that is less.

        `event` is the call's bill as it stands: what is charged should this process be gone.
        `spare_nano` is no part of what is available.

        Raises:
            LedgerUnavailable: The ledger could not decide.
        """
        ...

    async def extend(self, event: BillingEvent, amount_nano: int) -> int | None:
        """Hold more for a call, whose bill now stands at `event`; answers as `hold`.

        Raises:
            LedgerUnavailable: The ledger could not decide.
        """
        ...


@runtime_checkable
class Claims(Protocol):
    """Keeps the idempotency keys of clients; settling a call's event says what became of it."""

    async def claim(self, claimed: Claim) -> Claimed:
        """Claim a client's key for a request, or say whose it is, in one atomic step.

        Raises:
            LedgerUnavailable: The ledger could not decide.
        """
        ...

    async def void(self, request_id: str) -> None:
        """End what a request holds and claims; a bill that was recorded all the same is taken back.

        Raises:
            LedgerUnavailable: The ledger did not take it.
        """
        ...


class Spool(Protocol):
    """Keeps settlements on this host while the ledger is away."""

    async def keep(self, event: BillingEvent) -> None:
        """Keep a settlement durably, until the ledger takes it.

        Raises:
            LedgerUnavailable: It cannot be kept.
        """
        ...


class AccountBook(Protocol):
    """The accounts that a ledger keeps, as a look-up reads them."""

    async def accounts_version(self) -> int:
        """Return a number that grows with every change of accounts, keys and recharges.

        Raises:
            LedgerUnavailable: The ledger cannot be read.
        """
        ...

    async def account_of_key(self, sha256: str, currency: str) -> tuple[int, Account | None]:
        """Return the account of a key in force (None: there is none), and of which version it is.

        Raises:
            LedgerUnavailable: The ledger cannot be read.
        """
        ...


class Observer(Protocol):
    """Is told what becomes of calls, once for each, and how things stand; it must not block."""

    def listens(self) -> bool:
        """Tell whether calls that were served are to be told now: to make it up takes time."""
        ...

    def refused(self, call: RefusedCall) -> None:
        """Take note of a call that was refused."""
        ...

    def settled(self, call: SettledCall) -> None:
        """Take note of a call that was served."""
        ...

    def timed(self, timing: Timing) -> None:
        """Take note of how long a store or ledger took."""
        ...

    def sampled(self, sample: Sample) -> None:
        """Take note of how the process stands, every few seconds."""
        ...


class Attempt(NamedTuple):
    """Deliveries up to `place` were begun at `began`, and may have reached the far end."""

    place: int
    began: datetime


class Backlog(NamedTuple):
    """How many events wait for a sink, and since when the oldest of them (None: none waits)."""

    events: int
    oldest_at: datetime | None


@runtime_checkable
class Backlogs(Protocol):
    """An outbox that can tell at once how much of it waits, without looking through it."""

    async def backlog(self, sink: str) -> Backlog:
        """Return what waits for a sink."""
        ...


class Replay(NamedTuple):
    """Events that an operator wants sent once more; `place` is the last of them in the outbox."""

    id: int
    place: int
    events: Sequence[BillingEvent]


@runtime_checkable
class Outbox(Protocol):
    """The events of a ledger, as its relay reads them: a durable cursor per named sink.

    `generation` grows with each commit of this process.
    """

    generation: int

    async def elect(self, sink: str) -> bool:
        """Become, or stay, the one who delivers to a sink; False while another process is it."""
        ...

    async def resign(self, sink: str) -> None:
        """Let another process deliver to a sink."""
        ...

    async def pending(self, sink: str, count_max: int) -> Sequence[tuple[int, BillingEvent]]:
        """Return the next events after a sink's cursor, each with its place in the outbox."""
        ...

    async def advance(self, sink: str, place: int, rejected: Mapping[str, str]) -> None:
        """Move a sink's cursor, durably; `rejected` events go to the dead letters with a reason.

        The cursor never moves back; place 0 makes the sink known.
        """
        ...

    async def attempt(self, sink: str) -> Attempt | None:
        """Return what `begin` wrote last."""
        ...

    async def begin(self, sink: str, attempt: Attempt) -> None:
        """Write down, durably, that a delivery begins, in the place of what was written before."""
        ...

    async def replay(self, sink: str, count_max: int) -> Replay | None:
        """Return the next events that are to be sent once more, of at most `count_max` places."""
        ...

    async def replayed(self, sink: str, replay: Replay, rejected: Mapping[str, str]) -> None:
        """Go on after `replay`; what was taken is no dead letter any more, `rejected` are."""
        ...

    async def wait(self, generation: int, timeout_s: float) -> None:
        """Return when this process has committed since `generation`, or after `timeout_s`."""
        ...
